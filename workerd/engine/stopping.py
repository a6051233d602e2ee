"""Stopping a job: by an order to its supervisor, and past that if it does not act.

A job may stop its own supervisor (SIGSTOP), as may any other process of its account. So a supervisor that does not take
an order is continued, in the end after the job's processes were killed. It then takes the order and records the end. An
order that announces the kill is written first, so that the end is not taken for the job's own.

The job may stop its supervisor after the order was taken, too. So the supervisor is checked again after the grace
period.
"""

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable

import structlog

from workerd.engine import tree
from workerd.engine.errors import EngineError, FormatTooNew, SpoolCorrupt, StopUnconfirmed
from workerd.engine.folder import JobFolder
from workerd.engine.job import Job, JobState, StopOrder
from workerd.engine.remains import MarkKiller, continue_supervisor, find_processes, kill_remains
from workerd.engine.shelf import Shelf

log = structlog.get_logger()
_LOOK_SECONDS = 2.0  # a supervisor takes an order at once, unless the machine is overloaded or it was stopped
_PATIENCE_SECONDS = 10.0
_LIMIT_SECONDS = 60.0


class Stopper:
    """Stops jobs on a shelf, which is entered.

    Args:
        status: return how a job stands, as `Engine.status` does.
    """

    def __init__(self, shelf: Shelf, status: Callable[[str], Job]) -> None:
        self._shelf = shelf
        self._status = status
        # With the time by which the job must have ended.
        self._following: dict[str, tuple[float, asyncio.Task[None]]] = {}
        self._killer = MarkKiller(most=2, limit_seconds=_LIMIT_SECONDS)

    async def stop(self, folder: JobFolder, order: StopOrder) -> Job:
        """Order a job to be stopped, and wait until its supervisor has taken the order or the job has ended.

        Returns:
            The job as it stands then.

        Raises:
            FileNotFoundError, JobNotFound: there is no such job.
            SpoolCorrupt: it is damaged.
            StopUnconfirmed: neither has come about within a limit, though the job's processes were sent SIGKILL.
        """
        with self._shelf.watcher.watch(folder.path) as changed:
            is_ordered, began = False, time.monotonic()
            while True:
                changed.clear()
                job = self._look(folder, order)
                if job.ended:
                    return job
                if not is_ordered:
                    is_ordered = _order_stop(folder, order)
                elif job.status.state is JobState.STOPPING:
                    self._follow(folder, order)
                    return job
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    waited = time.monotonic() - began
                    if waited > _LIMIT_SECONDS + order.grace_seconds:
                        raise StopUnconfirmed(folder.job_id, waited) from None
                    await self._insist(folder, order, has_patience=waited < max(_PATIENCE_SECONDS, order.grace_seconds))

    async def aclose(self) -> None:
        """Cancel the tasks that follow stops."""
        tasks = [task for _, task in self._following.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, folder: JobFolder, order: StopOrder) -> None:
        """Follow a stop until the job has ended, unless a stop that is due sooner is being followed."""
        due = time.monotonic() + order.grace_seconds + _PATIENCE_SECONDS
        if folder.job_id in self._following:
            earlier, task = self._following[folder.job_id]
            if earlier <= due:
                return
            task.cancel()
        following = due, asyncio.create_task(self._see_to_end(folder, order))
        self._following[folder.job_id] = following
        following[1].add_done_callback(lambda _: self._followed(folder.job_id, following))

    def _followed(self, job_id: str, following: tuple[float, asyncio.Task[None]]) -> None:
        if self._following.get(job_id) is following:
            del self._following[job_id]

    async def _see_to_end(self, folder: JobFolder, order: StopOrder) -> None:
        """Wait until a job has ended that is being stopped; kill it if its supervisor is stopped after the grace."""
        wait, rounds = order.grace_seconds + _PATIENCE_SECONDS, math.ceil(_LIMIT_SECONDS / _LOOK_SECONDS)
        try:
            for _ in range(rounds):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        return await self._shelf.wait_unlocked(folder)
                supervisor = folder.read().supervisor
                if supervisor is None or not tree.is_stopped(supervisor.pid):
                    return None  # it has killed what there was, and waits for the disk, or for what no signal ends
                await self._insist(folder, order, has_patience=False)
                wait = _LOOK_SECONDS
        except FileNotFoundError:
            return None  # it was removed, after its end
        except (EngineError, OSError) as error:
            log.warning("it is not known whether a job was stopped", job=folder.job_id, error=str(error))

    def _look(self, folder: JobFolder, order: StopOrder) -> Job:
        try:
            return self._status(folder.job_id)
        except SpoolCorrupt as error:  # it may run all the same
            if isinstance(error, FormatTooNew) or not _try_order(folder, order):
                raise
            advice = "it was ordered to stop all the same: remove it when it has ended"
            raise SpoolCorrupt(error.path, error.problem, advice) from error

    async def _insist(self, folder: JobFolder, order: StopOrder, *, has_patience: bool) -> None:
        """Continue a supervisor that does not act; with no patience left, kill the job's processes before.

        Of jobs of formats 1 and 2 the supervisor is not known for certain, and nothing is done.
        """
        with contextlib.suppress(SpoolCorrupt, FileNotFoundError):
            journal = folder.read()
            if not has_patience and (processes := find_processes(folder, journal, self._shelf.spool)) is not None:
                log.warning("a supervisor does not take an order: its job is killed", job=folder.job_id)
                folder.order_stop(StopOrder(order.by, 0.0, kills=True))
                await kill_remains(processes, self._killer)
            if journal.spool == self._shelf.spool:
                continue_supervisor(journal)


def _try_order(folder: JobFolder, order: StopOrder) -> bool:
    """Order a damaged job to be stopped; return False if its supervisor cannot be told."""
    try:
        return folder.order_stop(order)
    except SpoolCorrupt:
        return False


def _order_stop(folder: JobFolder, order: StopOrder) -> bool:
    """Order a job to be stopped; return False if its supervisor has gone, or is about to write the end.

    Raises:
        SpoolCorrupt: it runs, and there is nothing that its supervisor takes orders from.
    """
    with contextlib.suppress(SpoolCorrupt):
        if folder.order_stop(order):
            return True
        if os.path.lexists(folder.control):
            return False
    if folder.is_locked() and not folder.is_old and not folder.read().ended:
        problem = "its supervisor can take no order"
        raise SpoolCorrupt(folder.control, problem, "end the job's processes by hand")
    return False
