"""What `spawn` and `run` share: the request that a command line asks for."""

from collections.abc import Sequence
from datetime import timedelta

from worker_api.worker.v1 import SpawnRequest

from workerctl.errors import UsageInvalid


def make_request(
    command: Sequence[str],
    program_path: str,
    args: Sequence[str] | None,
    envs: Sequence[str] | None,
    working_directory: str,
    name: str,
    timeout_seconds: float | None,
) -> SpawnRequest:
    """Make a request of what stands on the command line.

    Args:
        command: the program and its arguments, as they stand after `--`.
        program_path: the program, given as an option instead.
        args: its arguments, given as an option.
        envs: each NAME=VALUE.

    Raises:
        UsageInvalid: there is no program, or there are two, or a variable has no value.
    """
    if bool(command) == bool(program_path):
        raise UsageInvalid("give the program either after -- or with --program-path: see --help")
    if command and args:
        raise UsageInvalid("give the arguments either after -- or with --args")
    for text in (*command, program_path, *(args or ()), *(envs or ()), working_directory, name):
        if any("\udc80" <= character <= "\udcff" for character in text):  # PEP 383
            raise UsageInvalid(f"{text!r} is not UTF-8, which the contract needs")
    program, *arguments = command or [program_path, *(args or ())]
    return SpawnRequest(
        program=program,
        args=arguments,
        envs=dict(map(_pair, envs or ())),
        working_directory=working_directory,
        name=name,
        timeout=None if timeout_seconds is None else duration("--timeout-seconds", timeout_seconds),
    )


def duration(option: str, seconds: float) -> timedelta:
    """Make a duration of an option's seconds.

    Raises:
        UsageInvalid: it is not a number that can be waited for.
    """
    try:
        return timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise UsageInvalid(f"{option} {seconds} is no number of seconds that can be waited for") from None


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise UsageInvalid(f"--envs {text!r} is not NAME=VALUE (commas separate variables)")
    return name, value
