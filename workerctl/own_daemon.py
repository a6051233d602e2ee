"""The user's own daemon on this machine: finding it, and starting it when none runs."""

import contextlib
import fcntl
import getpass
import os
import subprocess
import sys
from pathlib import Path

import platformdirs

from pki.checks import is_name
from workerctl.errors import DaemonNotStarted

_SAID_WHEN_SERVING = b"serving gRPC endpoint at "
_MAX_LOG_BYTES = 4 << 20


def state_directory() -> Path:
    """Tell where the user's own daemon keeps its state: the same place as `workerd` without options."""
    return platformdirs.user_state_path("workerd", appauthor=False)


def find_or_start() -> str:
    """Find the user's own daemon, or start one on a free loopback port and wait until it serves.

    Returns:
        Its endpoint.

    Raises:
        DaemonNotStarted: with what it said.
    """
    directory = state_directory()
    endpoint = _find(directory)
    if endpoint is not None:
        return endpoint
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(directory / "start.lock", "w") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)  # of several clients one starts it, the others find it afterwards
        endpoint = _find(directory)
        if endpoint is None:
            _start(directory)
            endpoint = _find(directory)
    if endpoint is None:
        raise DaemonNotStarted(f"the daemon of {directory} ended as soon as it served: see {directory / 'daemon.log'}")
    return endpoint


def _find(directory: Path) -> str | None:
    """Read a living daemon's note of where it is; it holds a lock on that note for as long as it lives."""
    try:
        with open(directory / "endpoint") as note:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            return note.read().strip()
    except FileNotFoundError:
        return None


def _start(directory: Path) -> None:
    log = directory / "daemon.log"
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _MAX_LOG_BYTES:
            log.replace(log.with_name("daemon.log.1"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WORKERD_")}
    with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as errors:
        os.fchmod(errors.fileno(), 0o600)
        daemon = subprocess.Popen(
            [sys.executable, "-P", "-m", "workerd", *_options(directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    if daemon.stdout is None:
        raise AssertionError("a pipe was asked for")
    with daemon.stdout as said:
        line = said.readline()
    if not line.startswith(_SAID_WHEN_SERVING):
        daemon.wait()
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise DaemonNotStarted(f"your own daemon did not start: {last or 'it said nothing'} (more in {log})")
    daemon.returncode = 0  # it is not ours to wait for: it outlives this process


def _options(directory: Path) -> list[str]:
    """Give the daemon's options: its owner is its administrator, by the name of the certificate that it makes."""
    options = ["--listen", "127.0.0.1:0", "--state-dir", str(directory)]
    try:
        owner = getpass.getuser()
    except (KeyError, OSError):  # whichever it is: both are documented, for different versions of Python
        owner = str(os.getuid())
    return [*options, f"--roles.admin={owner}"] if is_name(owner) else options
