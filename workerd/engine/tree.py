"""A process's descendants: finding them, signalling them.

A process that double-forks away from its parent is adopted by its nearest subreaper, which a supervisor is, so it stays
in the supervisor's tree however it tries to leave (PR_SET_CHILD_SUBREAPER(2const)).
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


def descendants(pid: int) -> Iterator[int]:
    """Walk the processes below one process, parents before children.

    The walk is no snapshot: what is forked meanwhile may be missed, so whoever wants all of them walks again until
    none is left. The process ids are safe to signal for as long as nobody reaps them meanwhile: the caller is the one
    who reaps the orphans, and a process whose parent lives can only be recycled after that parent waited for it.
    """
    for child in _children(pid):
        yield child
        yield from descendants(child)


def _children(pid: int) -> list[int]:
    children: list[int] = []
    # proc_tid_children(5); a process that ended meanwhile has none.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    return children


def start_ticks(pid: int) -> int | None:
    """Tell when a process started, in clock ticks since boot, which with its id names it for ever (proc_pid_stat(5)).

    Returns:
        None when there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[19])


def signal_descendants(pid: int, *signals: signal.Signals) -> None:
    """Send signals to every process below one process, through a pidfd so that none of them meets a stranger."""
    for descendant in descendants(pid):
        born = start_ticks(descendant)
        try:
            handle = os.pidfd_open(descendant)
        except ProcessLookupError:
            continue
        try:
            if born is not None and start_ticks(descendant) == born:
                for number in signals:
                    # PermissionError: a program with the set-user-ID bit may be out of our reach; its end is awaited.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)
