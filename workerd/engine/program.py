"""Starting a program: its environment, finding its file, and the last steps before it is executed."""

import contextlib
import errno
import os
import pwd
import signal
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from workerd.engine import cgroup, linux
from workerd.engine.errors import (
    SHORTAGES,
    ArgumentsTooLong,
    CannotStart,
    ProgramNotExecutable,
    ProgramNotFound,
    ResourcesExhausted,
    WorkingDirectoryUnusable,
)
from workerd.engine.job import JobSpec

_ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH = "/usr/local/bin:/usr/bin:/bin"
_FAILURE = struct.Struct("<Bi")
_CHDIR, _EXEC, _OTHER, _FAULT = range(4)


def account() -> pwd.struct_passwd:
    """Look up the daemon's user; one without an entry, as in some containers, is called by its number."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return pwd.struct_passwd((str(uid), "x", uid, os.getegid(), "", "/", "/bin/sh"))


def build_environment(spec: JobSpec) -> dict[str, str]:
    """Make a job's environment: a clean base that holds nothing of the daemon's own, and the job's on top."""
    user = account()
    return {
        "PATH": _ROOT_PATH if user.pw_uid == 0 else _USER_PATH,
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
        "LANG": "C.UTF-8",
        "WORKERD_JOB_ID": spec.id,
        **spec.envs,
    }


def find_program(program: str, environment: Mapping[str, str]) -> str:
    """Find a program's file.

    Args:
        program: an absolute path, or a name to look up in the environment's PATH.

    Raises:
        ProgramNotFound: no such file.
        ProgramNotExecutable: there are such files, and none is an executable one.
    """
    if program.startswith("/"):
        candidates = [program]
        missing = "there is no such file"
    else:
        path = environment.get("PATH", "")
        candidates = [os.path.join(directory, program) for directory in path.split(":") if directory.startswith("/")]
        missing = f"it is in no directory of PATH={path}"
    problem = None
    for candidate in candidates:
        try:
            mode = os.stat(candidate).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = problem or f"{candidate}: {error.strerror}"
            continue
        if not stat.S_ISREG(mode):
            problem = problem or f"{candidate} is not a regular file"
        elif not os.access(candidate, os.X_OK, effective_ids=True):
            problem = problem or f"{candidate} has no permission to be executed: try chmod +x"
        else:
            return candidate
    if problem is not None:
        raise ProgramNotExecutable(program, problem)
    raise ProgramNotFound(program, missing)


def start(spec: JobSpec, *, stdout: int, stderr: int, cgroup_directory: Path | None) -> int:
    """Fork and execute a job's program, and wait until the kernel has taken it or refused.

    Args:
        stdout: the descriptor that becomes the program's standard output.
        stderr: the same for standard error.
        cgroup_directory: the cgroup to run in, if any.

    Returns:
        The program's process id.

    Raises:
        CannotStart: with the reason; nothing is left of the attempt.
    """
    environment = build_environment(spec)
    path = find_program(spec.program, environment)
    report_read, report_write = os.pipe()  # close-on-exec: end of file on it means that the program runs
    supervisor = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(report_read)
        os.close(report_write)
        raise ResourcesExhausted(spec.program, f"no process for it: {error.strerror}") from error
    if pid == 0:
        _become_program(spec, path, environment, supervisor, stdout, stderr, cgroup_directory, report_write)
    os.close(report_write)
    with open(report_read, "rb") as report:
        failure = report.read()
    if failure:
        os.waitpid(pid, 0)
        step, number = _FAILURE.unpack_from(failure)
        raise _failure(spec, step, number, failure[_FAILURE.size :].decode())
    return pid


def _become_program(
    spec: JobSpec,
    path: str,
    environment: Mapping[str, str],
    supervisor: int,
    stdout: int,
    stderr: int,
    cgroup_directory: Path | None,
    report: int,
) -> NoReturn:
    step = _OTHER
    try:
        encoded = {name.encode(): value.encode() for name, value in environment.items()}
        os.setsid()
        linux.set_parent_death_signal(signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before the line above
            os._exit(127)
        if cgroup_directory is not None:
            cgroup.enter(cgroup_directory)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        step = _CHDIR
        os.chdir(spec.working_directory)
        step = _EXEC
        _reset_signals()
        # Every other descriptor is close-on-exec (PEP 446), so that the program inherits the standard three alone.
        os.execve(path.encode(), [text.encode() for text in (spec.program, *spec.args)], encoded)
    except OSError as error:
        os.write(report, _FAILURE.pack(step, error.errno or 0))
    except BaseException as error:  # a fault of ours
        os.write(report, _FAILURE.pack(_FAULT, 0) + repr(error).encode(errors="replace"))
    os._exit(127)


def _reset_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # OSError: the C library keeps a few of the real-time signals for itself.
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _failure(spec: JobSpec, step: int, number: int, fault: str) -> CannotStart:
    if step == _FAULT:
        return CannotStart(spec.program, f"workerd has a fault: {fault}")
    problem = os.strerror(number)
    if step == _CHDIR:
        return WorkingDirectoryUnusable(spec.working_directory, problem)
    if number == errno.E2BIG:
        return ArgumentsTooLong(spec.program, "arguments and environment are too long")
    if number in SHORTAGES:
        return ResourcesExhausted(spec.program, problem)
    if step == _EXEC and number == errno.ENOENT:
        return ProgramNotExecutable(spec.program, "the interpreter that it names does not exist")
    if step == _EXEC:
        return ProgramNotExecutable(spec.program, problem)
    return CannotStart(spec.program, problem)
