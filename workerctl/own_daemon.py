"""The user's own daemon on this machine: finding it, starting it when none runs, and ending it."""

import contextlib
import getpass
import os
import pwd
import select
import shlex
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import platformdirs

from pki.checks import is_name
from system import environment
from system.file_lock import LockHeld, lock_within
from system.holder import Holder, holding_process, read_locked
from system.ownership import Untrusted, account_name, make_folder, open_own, require_trusted
from workerctl.errors import DaemonNotEnded, DaemonNotStarted, FolderRefused

_SAID_WHEN_SERVING = b"serving gRPC endpoint at "
_MAX_LOG_BYTES = 4 << 20
_STARTED = "start.lock"
_START_SECONDS = 60.0  # on a machine that is overloaded, with many jobs to take up
_KILLED_SECONDS = 10.0
_END_SECONDS = 40.0  # the daemon itself gives API processes and calls 30


def state_directory() -> Path:
    """Return where the user's own daemon keeps its state: the same place as `workerd` without options."""
    return platformdirs.user_state_path("workerd", appauthor=False)


def find_or_start() -> str:
    """Find the user's own daemon, or start one on a free loopback port and wait until it serves.

    Returns:
        Its endpoint.

    Raises:
        DaemonNotStarted: with the daemon's message.
        FolderRefused: other accounts can change its state directory.
    """
    directory = state_directory()
    try:
        endpoint = find()
        if endpoint is not None:
            return endpoint
        make_folder(directory)
        lock = directory / _STARTED
        with open(open_own(lock, os.O_RDWR | os.O_CREAT), "w") as started:
            # Of several clients one starts it, the others find it afterwards.
            lock_within(started.fileno(), lock, _START_SECONDS + _KILLED_SECONDS)
            endpoint = find()
            if endpoint is None:
                pid = _start(directory)
                started.truncate(0)
                started.write(str(pid))
                started.flush()
                endpoint = find()
    except Untrusted as error:
        raise _refuse(directory, error) from error
    except LockHeld as error:
        raise DaemonNotStarted(f"your own daemon was not started: {error}") from error
    if endpoint is None:
        raise DaemonNotStarted(f"the daemon of {directory} ended as soon as it served: see {directory / 'daemon.log'}")
    return endpoint


def find() -> str | None:
    """Return the endpoint of the user's own daemon; None when none serves.

    Raises:
        FolderRefused: other accounts can change its state directory.
    """
    directory = state_directory()
    _require_trusted(directory)
    _require_trusted(directory / "endpoint")
    note = read_locked(directory / "endpoint")  # locked for as long as the daemon lives
    return None if note is None else note.decode().strip()


def holder() -> AbstractContextManager[Holder | None]:
    """Find the process of the user's own daemon, whether it serves already or not.

    Raises:
        FolderRefused: other accounts can change its state directory.
    """
    directory = state_directory()
    _require_trusted(directory)
    _require_trusted(directory / "lock")
    return holding_process(directory / "lock")


def end(daemon: Holder) -> None:
    """End a daemon, which leaves its jobs running, and wait until it has ended.

    Raises:
        DaemonNotEnded: it does not end in time.
    """
    daemon.terminate()
    if not daemon.wait_ended(_END_SECONDS):
        raise DaemonNotEnded(daemon.pid, _END_SECONDS)


def is_started_here(daemon: Holder) -> bool:
    """Return whether a client started a daemon, and not the user, with options of the user's choice."""
    with contextlib.suppress(FileNotFoundError):
        return (state_directory() / _STARTED).read_text() == str(daemon.pid)
    return False


def _require_trusted(directory: Path) -> None:
    try:
        require_trusted(directory)
    except Untrusted as error:
        raise _refuse(directory, error) from error


def _refuse(directory: Path, error: Untrusted) -> FolderRefused:
    """Return the error for a state directory that is not trusted, with a way to use another."""
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        home = ""
    if error.is_anothers and home and not directory.is_relative_to(home):
        own = f"`env -u XDG_STATE_HOME HOME={shlex.quote(home)} workerctl …`"
        return FolderRefused(
            f"{error.path} is refused: {error.problem}: your own daemon is not kept in {directory}; to use one of"
            f" {account_name(os.geteuid())}'s, run {own}"
        )
    return FolderRefused(str(error))


def _start(directory: Path) -> int:
    """Start a daemon, wait until it serves, and return its process id."""
    log = directory / "daemon.log"
    with contextlib.suppress(FileNotFoundError):
        if log.lstat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_name("daemon.log.1"))
    with open(open_own(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as errors:
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "workerd", *_options(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env=environment.clean(),
            start_new_session=True,
        )
    if daemon.stdout is None:
        raise AssertionError("a pipe was asked for")
    with daemon.stdout as said:
        line = _read_line(said.fileno(), _START_SECONDS)
    if line is None:
        daemon.kill()  # which leaves its jobs running, if it has taken up any
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(_KILLED_SECONDS)
        raise DaemonNotStarted(f"your own daemon did not serve within {_START_SECONDS:g} s and was ended (see {log})")
    if not line.startswith(_SAID_WHEN_SERVING):
        try:
            daemon.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise DaemonNotStarted(f"your own daemon did not start: {last or 'it said nothing'} (more in {log})")
    daemon.returncode = 0  # it is not ours to wait for: it outlives this process
    return daemon.pid


def _read_line(descriptor: int, seconds: float) -> bytes | None:
    """Read a line from a pipe, or what precedes its end; return None if neither arrives in time."""
    deadline, line = time.monotonic() + seconds, b""
    readable = select.poll()
    readable.register(descriptor, select.POLLIN)
    while not line.endswith(b"\n"):
        if not readable.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        if not (data := os.read(descriptor, 4096)):
            break
        line += data
    return line


def _options(directory: Path) -> list[str]:
    """Return the daemon's options: its owner is its administrator, by the name in the owner's certificate."""
    options = ["--listen", "127.0.0.1:0", "--state-dir", str(directory)]
    try:
        owner = getpass.getuser()
    except (KeyError, OSError):  # whichever it is: both are documented, for different versions of Python
        owner = str(os.getuid())
    return [*options, f"--roles.admin={owner}"] if is_name(owner) else options
