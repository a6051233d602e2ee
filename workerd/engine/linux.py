"""The one door to the kernel calls that the standard library lacks (prctl(2), fallocate(2)).

The packages that wrap them have had no release for years; a few calls through ctypes need less than a dependency.
"""

import ctypes
import errno
import os
import signal

_PR_SET_PDEATHSIG = 1  # PR_SET_PDEATHSIG(2const)
_PR_SET_NAME = 15  # PR_SET_NAME(2const)
_PR_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER(2const)
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # fallocate(2), linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    if _libc.prctl(option, value, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def set_parent_death_signal(number: signal.Signals) -> None:
    """Have the kernel signal this process when its parent dies. Kept across execve(2) of ordinary programs."""
    _prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_process_name(name: str) -> None:
    """Set the name that ps and top show, cut to 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode())


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Give a range of a file back to the file system; it reads as zeros from then on, and the file's size stays.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot do this.
    """
    _fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def set_room_aside(descriptor: int, offset: int, length: int) -> None:
    """Take room on the disk for a range of a file; the file's size and what can be read of it stay.

    Raises:
        OSError: ENOSPC where there is none, EOPNOTSUPP where the file system cannot do this.
    """
    _fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, offset, length)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, f"fallocate: {os.strerror(number)}")
