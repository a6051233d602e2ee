"""Ending a job's processes from outside, when its supervisor has gone or does not act.

Nothing here blocks: a process that not even SIGKILL ends, as in an uninterruptible sleep, holds up its own job alone.
"""

import asyncio
import contextlib
import functools
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from system import pidfd
from workerd.engine import cgroup, tree
from workerd.engine.account import own_account
from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.identity import MARK_VARIABLE, boot_id, job_mark
from workerd.engine.journal import Journal, Supervised
from workerd.engine.process_end import wait_end
from workerd.engine.threads import Threads
from workerd.engine.watcher import Watcher

KILL_SECONDS = 30.0  # how long processes that got SIGKILL are waited for
_DYING_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Remains:
    """Where a job's processes are: in its cgroup if it has one, else wherever a variable of their environment is.

    Attributes:
        variable: as NAME=VALUE.
        uid: of the job's account.
    """

    cgroup: Path | None
    variable: str
    uid: int


class MarkKiller:
    """Kills processes by their mark, in threads.

    A process can hold up the thread that reads its environment, by a page of a file whose read never ends (fuse(4)). So
    each account has threads of its own.

    Args:
        most: how many threads an account has at a time.
        limit_seconds: how long a look through the processes of the machine may take.
    """

    def __init__(self, *, most: int, limit_seconds: float) -> None:
        self._make = functools.partial(Threads, "looking for a job's processes", most=most, limit_seconds=limit_seconds)
        self._of_account: dict[int, Threads] = {}

    async def kill(self, remains: Remains) -> list[int]:
        """Call `tree.kill_marked`, and return what it returns.

        Raises:
            NoAnswer: it takes too long.
            OSError: as it raises it.
        """
        if remains.uid not in self._of_account:
            self._of_account[remains.uid] = self._make()
        result = _Handles()
        try:
            await self._of_account[remains.uid].run(lambda: result.put(tree.kill_marked(remains.variable, remains.uid)))
        except BaseException:
            result.give_up()
            raise
        return result.handles


class _Handles:
    """Passes handles of processes from a thread to a task. They are closed if the task does not wait any more."""

    def __init__(self) -> None:
        self.handles: list[int] = []
        self._lock = threading.Lock()
        self._is_wanted = True

    def put(self, handles: list[int]) -> None:
        with self._lock:
            self.handles = handles
            if not self._is_wanted:
                self._close()

    def give_up(self) -> None:
        with self._lock:
            self._is_wanted = False
            self._close()

    def _close(self) -> None:
        for handle in self.handles:
            os.close(handle)
        self.handles = []


async def find_remains(folder: JobFolder, journal: Journal, spool: str) -> Remains | None:
    """Return where processes of a job may be whose lock is free, if it is certain that they are this job's.

    Args:
        spool: the id of the state directory.

    Raises:
        SpoolCorrupt: its supervisor lives.
    """
    if folder.is_old:
        return _find_old(journal, folder.job_id)
    if (found := find_processes(folder, journal, spool)) is not None and journal.supervisor is not None:
        await _wait_gone(folder, journal.supervisor)
    return found


async def _wait_gone(folder: JobFolder, supervisor: Supervised) -> None:
    """Wait for the end of a supervisor that is ending: the kernel closes its files first (do_exit() in kernel/exit.c).

    Raises:
        SpoolCorrupt: it does not end.
    """
    try:
        async with asyncio.timeout(_DYING_SECONDS):
            with contextlib.suppress(ProcessLookupError), pidfd.hold(supervisor.pid) as handle:
                if tree.start_ticks(supervisor.pid) == supervisor.start_ticks:
                    await wait_end(handle)
    except TimeoutError:
        problem = f"its supervisor, process {supervisor.pid}, lives and holds another file"
        raise SpoolCorrupt(folder.journal, problem) from None


def find_processes(folder: JobFolder, journal: Journal, spool: str) -> Remains | None:
    """Return where the processes of a job may be, its supervisor left aside.

    Returns:
        None when there are none, as after a boot, or when they are not this job's: those of a copied state directory
        belong to the original.
    """
    supervisor = journal.supervisor
    if supervisor is None or supervisor.boot != boot_id() or journal.spool != spool:
        return None
    mark = job_mark(spool, folder.job_id)
    own = Path(supervisor.cgroup)
    return Remains(own if own.name == mark else None, f"{MARK_VARIABLE}={mark}", _uid(journal))


def _find_old(journal: Journal, job_id: str) -> Remains | None:
    """Do the same for a format that knew neither supervisor nor boot nor state directory."""
    status = journal.status
    parent = tree.parent_of(status.pid) if status is not None and status.pid else None
    if parent is not None and tree.name_of(parent) == "workerd-job":
        return None  # its supervisor lives, so its lock is elsewhere: this is a copy of its folder
    own = Path(status.cgroup) if status is not None and status.cgroup else None
    return Remains(own, f"WORKERD_JOB_ID={job_id}", _uid(journal))


def _uid(journal: Journal) -> int:
    account = None if journal.spec is None else journal.spec.account
    return (account or own_account()).uid


async def end_remains(remains: Remains, watcher: Watcher, killer: MarkKiller) -> None:
    """Send SIGKILL to what is left of a job, and wait until it has ended.

    Args:
        watcher: running.
        killer: for a job without a cgroup.

    Raises:
        TimeoutError: it does not end.
    """
    try:
        async with asyncio.timeout(KILL_SECONDS):
            if remains.cgroup is not None:
                cgroup.kill(remains.cgroup)
                await _wait_empty(remains.cgroup, watcher)
                cgroup.remove(remains.cgroup)
            else:
                while handles := await killer.kill(remains):
                    await _wait_ended(handles)
    except TimeoutError:
        problem = f"processes of the job have not ended within {KILL_SECONDS:g} s of SIGKILL"
        raise TimeoutError(problem) from None


async def kill_remains(remains: Remains, killer: MarkKiller) -> None:
    """Send SIGKILL to the processes of a job, and do not wait for their end."""
    if remains.cgroup is not None:
        cgroup.kill(remains.cgroup)
    else:
        for handle in await killer.kill(remains):
            os.close(handle)


def continue_supervisor(journal: Journal) -> None:
    """Continue a job's supervisor (SIGCONT).

    Args:
        journal: the job's, and not that of a copied state directory.
    """
    supervisor = journal.supervisor
    if supervisor is None or supervisor.boot != boot_id():
        return
    # PermissionError: where another account's supervisor has the id now, which the second look finds out.
    with contextlib.suppress(ProcessLookupError, PermissionError), pidfd.hold(supervisor.pid) as handle:
        if tree.start_ticks(supervisor.pid) == supervisor.start_ticks:
            signal.pidfd_send_signal(handle, signal.SIGCONT)


async def _wait_empty(directory: Path, watcher: Watcher) -> None:
    """Wait until every process in a cgroup and below it has ended (cgroups(7), "cgroup.events file")."""
    with contextlib.suppress(FileNotFoundError):
        events = directory / "cgroup.events"
        with watcher.watch(events) as changed:
            while b"populated 1" in events.read_bytes():
                await changed.wait()
                changed.clear()


async def _wait_ended(handles: list[int]) -> None:
    """Wait until processes have ended, and close their handles."""
    try:
        for handle in handles:
            await wait_end(handle)
    finally:
        for handle in handles:
            os.close(handle)
