"""The process that holds a lock file with its id in it, as a daemon holds the file `lock` of its state directory."""

import contextlib
import fcntl
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from system import pidfd


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock file.

    Attributes:
        handle: a descriptor of the process, for `system.pidfd`.
    """

    pid: int
    handle: int

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM). One that has ended is left alone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGTERM)

    def wait_ended(self, timeout_seconds: float) -> bool:
        """Wait until the process has ended, for so long at most, and return whether it has."""
        return pidfd.wait_ended(self.handle, timeout_seconds)


@contextlib.contextmanager
def holding_process(lock: Path) -> Iterator[Holder | None]:
    """Find the process that holds a lock file.

    Yields:
        The process; None if none holds the file, or the file does not exist.
    """
    with contextlib.ExitStack() as stack:
        try:
            told = lock.read_bytes()
            handle = stack.enter_context(pidfd.hold(int(told)))
        except (FileNotFoundError, ValueError, ProcessLookupError):
            yield None
            return
        # After the process was opened: if the file is locked now, that process is the one that holds it.
        yield Holder(int(told), handle) if read_locked(lock) == told else None


def read_locked(path: Path) -> bytes | None:
    """Read a file that a process holds an exclusive lock on (flock(2)); None if none does, or there is no such file."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read()
    return None
