"""What a daemon holds of the machine, to see that it lets go of it again."""

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workerd.engine.tree import descendants


@dataclass(frozen=True)
class Holding:
    """What a process holds of the machine.

    Attributes:
        processes: the names of those below it, zombies included.
    """

    descriptors: int
    watches: int
    processes: tuple[str, ...]

    @classmethod
    def of(cls, pid: int) -> "Holding":
        descriptors, watches = open_of(pid)
        names = tuple(sorted(Path(f"/proc/{below}/stat").read_text().split()[1] for below, _ in descendants(pid)))
        return cls(descriptors, watches, names)


def open_of(pid: int) -> tuple[int, int]:
    """Count the descriptors of a process, and the inotify watches of all of them."""
    open_files = list(Path(f"/proc/{pid}/fdinfo").iterdir())
    watches = 0
    for file in open_files:
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            watches += len(re.findall(r"^inotify ", file.read_text(), re.MULTILINE))  # proc_pid_fdinfo(5)
    return len(open_files), watches


def resident_bytes(pid: int) -> int:
    """Tell how much memory a process has in use (proc_pid_statm(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def settle(look: Callable[[], object], wanted: object) -> None:
    """Wait until what is looked at is as it was: what has been let go of may take a moment to be gone."""
    seen: object = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while seen != wanted:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    seen = look()
                await asyncio.sleep(0.05)
    assert seen == wanted, f"{seen} instead of {wanted}"


def forget_peak(pid: int) -> None:
    """Have `peak_bytes` count from now on (proc_pid_clear_refs(5))."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """Tell how much memory a process had in use at most (proc_pid_status(5), VmHWM)."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def tasks_by_name() -> list[str]:
    """Name what the tasks that have not ended run."""
    return sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
