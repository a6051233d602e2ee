"""Waiting for locks on files (flock(2)) within a limit, with an error that names the process that holds the lock."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0002, 0.05


class LockHeld(TimeoutError):
    """Another process has held a lock for too long.

    Args:
        path: of the file, or the folder, that is locked.
        seconds: how long the lock was waited for.
        holder: the process that holds it, as `find_holder` returns it.

    Attributes:
        holder: that process.
        problem: who holds the lock.
        advice: what to do.
    """

    def __init__(self, path: Path, seconds: float, holder: int | None) -> None:
        self.holder = holder
        self.problem = f"{_describe(holder)} has held its lock for more than {seconds:g} s"
        self.advice = _advise(holder)
        super().__init__(errno.ETIMEDOUT, f"{self.problem}: {self.advice}", str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def lock_within(descriptor: int, path: Path, seconds: float) -> None:
    """Take the exclusive lock on an open file. Blocks the thread for as long as another process holds it.

    Args:
        descriptor: of the file; its last copy releases the lock when it is closed, in whatever process.
        path: of the file, for the error.
        seconds: how long to wait at most.

    Raises:
        LockHeld: another process holds it for longer.
    """
    for pause_seconds in try_to_lock(descriptor, path, seconds):
        time.sleep(pause_seconds)


def try_to_lock(descriptor: int, path: Path, seconds: float) -> Iterator[float]:
    """Take the lock as `lock_within` does, for callers that wait in another way than with their thread.

    Yields:
        How long to wait before the next attempt. The lock is taken when the iteration ends.
    """
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (left := deadline - time.monotonic()) <= 0:
                raise LockHeld(path, seconds, find_holder(descriptor)) from None
        # flock(2) takes no limit, and the signal that would interrupt it belongs to the whole process.
        yield min(pause, left)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


def find_holder(descriptor: int) -> int | None:
    """Return the process that took a lock on an open file (proc_locks(5)); None if the kernel shows none that lives.

    One that has ended since has passed the open file on, which only the holder's descriptors show.
    """
    file = os.fstat(descriptor)
    wanted = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        match line.split()[1:]:
            case ["FLOCK", _, _, pid, place, *_] if place == wanted and _read_stat(int(pid))[0]:
                return int(pid)  # 0, of another pid namespace, is no process here
    return None


def _describe(holder: int | None) -> str:
    if holder is None:
        return "another process"
    name, state = _read_stat(holder)
    stopped = ", which is stopped," if state == "T" else ""
    return f"process {holder}{f' ({name})' if name else ''}{stopped}"


def _advise(holder: int | None) -> str:
    if holder is None:
        return "end that process, which lslocks(8) may show, and try again"
    if _read_stat(holder)[1] == "T":
        return f"continue that process (`kill -CONT {holder}`) or end it, and try again"
    return "end that process, and try again"


def _read_stat(pid: int) -> tuple[str, str]:
    """Return the name and the state of a process (proc_pid_stat(5)); both empty if it has gone."""
    try:
        before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return "", ""
    return before.partition("(")[2], after.split()[0]
