"""What workerctl exits with. `run` passes the code of its job on; the codes from 121 are workerctl's own.

The meanings of 124 to 127 and of 128 + N are those of timeout(1), env(1) and the shell.
"""

import enum


class ExitCode(enum.IntEnum):
    """One code for each kind of outcome; the documentation of each is what docs/workerctl.md says."""

    OK = 0
    NO = 1
    USAGE = 2
    LOG_DAMAGED = 121
    JOB_LOST = 122
    NOT_FOUND = 123
    TIMED_OUT = 124
    FAILED = 125
    NOT_EXECUTABLE = 126
    PROGRAM_NOT_FOUND = 127
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


def of_signal(number: int) -> int:
    """Tell the exit code for a program that a signal ended."""
    return 128 + number
