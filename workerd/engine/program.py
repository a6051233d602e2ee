"""Starting a program: its environment, finding its file, and the last steps before it is executed."""

import enum
import errno
import os
import resource
import select
import signal
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from system import pidfd
from workerd.engine import cgroup, linux, start_state
from workerd.engine.account import become, own_account
from workerd.engine.control import Control
from workerd.engine.errors import (
    SHORTAGES,
    AccountUnusable,
    ArgumentsTooLong,
    CannotStart,
    ProgramNotExecutable,
    ProgramNotFound,
    ResourcesExhausted,
    WorkingDirectoryUnusable,
)
from workerd.engine.identity import MARK_VARIABLE
from workerd.engine.job import JobSpec
from workerd.engine.reply import decode_failure, encode_failure

_ROOT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_USER_PATH = "/usr/local/bin:/usr/bin:/bin"
_SEPARATOR = b"\n"
_EXECUTE_SECONDS = 50.0  # shorter than the engine waits (`workerd.engine.launcher.START_SECONDS`): it gets the reason
_KILL_SECONDS = 5.0
_EXECUTING_BYTES = 1 << 20  # more than a process allocates between getrusage and execve


class _Step(enum.Enum):
    """How far a process has come on its way to become the program."""

    PREPARE = enum.auto()
    KEYRING = enum.auto()
    ACCOUNT = enum.auto()
    CHDIR = enum.auto()
    EXECUTE = enum.auto()


def build_environment(spec: JobSpec, mark: str) -> dict[str, str]:
    """Make a job's environment: a clean base that holds nothing of the daemon's own, and the job's on top.

    Args:
        mark: the job's (`workerd.engine.identity.job_mark`).
    """
    account = spec.account or own_account()
    return {
        "PATH": _ROOT_PATH if account.uid == 0 else _USER_PATH,
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
        "LANG": "C.UTF-8",
        **spec.envs,
        "WORKERD_JOB_ID": spec.id,
        MARK_VARIABLE: mark,  # last, for no job may choose it: what is left of a lost job is found by it
    }


def find_program(program: str, environment: Mapping[str, str]) -> str:
    """Find a program's file, with the rights of this process.

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


def start(
    spec: JobSpec, mark: str, control: Control, *, stdout: int, stderr: int, cgroup_directory: Path | None
) -> tuple[int, int]:
    """Fork and execute a job's program, and wait until the kernel has executed it or refused.

    A process that does not get that far, as when other programs of its account stop it, can be stopped as any job: an
    order counts from the fork on, and its process is returned as if it were the program.

    Args:
        mark: the job's (`workerd.engine.identity.job_mark`).
        control: where orders for the job come; none is taken from there.
        stdout: the descriptor that becomes the program's standard output.
        stderr: the same for standard error.
        cgroup_directory: the cgroup to run in, if any.

    Returns:
        The program's process id, and the peak memory of its process before execve in bytes, which the kernel counts as
        the program's (getrusage(2), ru_maxrss; exec_mmap in fs/exec.c).

    Raises:
        CannotStart: with the reason; nothing is left of the attempt.
    """
    report_read, report_write = os.pipe()  # close-on-exec: end of file on it means that the program runs
    supervisor = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(report_read)
        os.close(report_write)
        raise ResourcesExhausted(spec.program, f"no process for it: {error.strerror}") from error
    if pid == 0:
        try:
            failure = _become_program(spec, mark, supervisor, stdout, stderr, cgroup_directory, report_write)
            with open(report_write, "wb") as report:
                report.write(_SEPARATOR + encode_failure(failure))
        finally:
            os._exit(127)
    os.close(report_write)
    try:
        before, _, refusal = _read_report(report_read, control.descriptor).partition(_SEPARATOR)
    except TimeoutError:
        with pidfd.hold(pid) as handle:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            pidfd.wait_ended(handle, _KILL_SECONDS)  # where not even SIGKILL ends it, it does not become the program
        os.waitpid(pid, os.WNOHANG)
        problem = f"it was not executed within {_EXECUTE_SECONDS:g} s"
        advice = "its file may hang, or another program may have stopped its process"
        raise CannotStart(spec.program, f"{problem}: {advice}") from None
    finally:
        os.close(report_read)
    if refusal:
        os.waitpid(pid, 0)
        raise decode_failure(refusal)
    return pid, int(before or _own_peak())  # without a report it has used no more than this process, its parent


def _read_report(report: int, control: int) -> bytes:
    """Return what a process reports before it becomes the program; nothing if an order for it arrives first.

    Raises:
        TimeoutError: it neither becomes the program nor ends.
    """
    ready, deadline = select.poll(), time.monotonic() + _EXECUTE_SECONDS
    ready.register(report, select.POLLIN)
    ready.register(control, select.POLLIN)
    data = b""
    while readable := dict(ready.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        if report not in readable:
            return b""
        if not (part := os.read(report, select.PIPE_BUF)):
            return data
        data += part
    raise TimeoutError


def peak_memory(usage: resource.struct_rusage, before_bytes: int) -> int:
    """Return the peak memory of a job's processes in bytes; zero if it is not known.

    Args:
        usage: of the processes.
        before_bytes: as `start` returned it. A peak that is not above this is not the program's.
    """
    counted_bytes = usage.ru_maxrss * 1024
    return counted_bytes if counted_bytes > before_bytes + _EXECUTING_BYTES else 0


def _become_program(
    spec: JobSpec, mark: str, supervisor: int, stdout: int, stderr: int, cgroup_directory: Path | None, report: int
) -> CannotStart:
    """Become the program; return why that cannot be."""
    step = _Step.PREPARE
    try:
        linux.show_memory()  # it holds no secrets but this job's, and some of /proc/self can then be written to
        os.setsid()
        _die_with(supervisor)
        start_state.assume()
        if cgroup_directory is not None:
            cgroup.enter(cgroup_directory)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        step = _Step.KEYRING
        start_state.leave_session_keyring()
        if spec.account is not None:
            step = _Step.ACCOUNT
            for descriptor in (1, 2):  # the program may open /dev/stdout, which is the pipe's file (proc_pid_fd(5))
                os.fchown(descriptor, spec.account.uid, spec.account.gid)
            become(spec.account)
            _die_with(supervisor)  # again: the kernel has forgotten it
        # From here on it is the account's own rights that count.
        environment = build_environment(spec, mark)
        path = find_program(spec.program, environment)
        encoded = {name.encode(): value.encode() for name, value in environment.items()}
        step = _Step.CHDIR
        os.chdir(spec.working_directory)
        arguments = [text.encode() for text in (spec.program, *spec.args)]
        step = _Step.EXECUTE
        os.write(report, b"%d" % _own_peak())
        # Every other descriptor is close-on-exec (PEP 446), so that the program inherits the standard three alone.
        os.execve(path.encode(), arguments, encoded)
    except CannotStart as error:
        return error
    except OSError as error:
        return _failure(spec, step, error.errno or 0)
    except BaseException as error:  # a fault of ours
        return CannotStart(spec.program, f"workerd has a fault: {error!r}")


def _own_peak() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _die_with(supervisor: int) -> None:
    """Ask the kernel to kill this process when its parent dies, or end now if it has died already."""
    linux.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before the line above
        os._exit(127)


def _failure(spec: JobSpec, step: _Step, number: int) -> CannotStart:
    problem = os.strerror(number) + (f" (as {spec.run_as})" if spec.run_as else "")
    match step:
        case _Step.ACCOUNT:
            refused = f"the kernel does not let the daemon change to it: {os.strerror(number)}"
            return AccountUnusable(spec.run_as, refused)
        case _Step.KEYRING:
            limits = "kernel.keys.root_maxkeys, or kernel.keys.maxkeys in a container, bounds them (keyrings(7))"
            return ResourcesExhausted(spec.program, f"no session keyring for it: {problem}: {limits}")
        case _Step.CHDIR:
            if spec.working_directory == (spec.account or own_account()).home:
                problem += ": it is the home of the account; name another folder with `working_directory`"
            return WorkingDirectoryUnusable(spec.working_directory, problem)
        case _ if number == errno.E2BIG:
            return ArgumentsTooLong(spec.program, "arguments and environment are too long")
        case _ if number in SHORTAGES:
            return ResourcesExhausted(spec.program, problem)
        case _Step.EXECUTE if number == errno.ENOENT:
            return ProgramNotExecutable(spec.program, "the interpreter that it names does not exist")
        case _Step.EXECUTE:
            return ProgramNotExecutable(spec.program, problem)
        case _Step.PREPARE:
            return CannotStart(spec.program, problem)
