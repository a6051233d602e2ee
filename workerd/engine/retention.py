"""Which ended jobs are removed by themselves, and when: those too old, and those that ended first if all are too much.

What is removed is chosen from the catalogue, in the order of the ends: the cost grows with what is removed, not with
what is kept.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

from workerd.engine.catalog import EndedJob
from workerd.engine.errors import CatalogFailed
from workerd.engine.folder import JobFolder
from workerd.engine.shelf import Shelf
from workerd.engine.storage import Storage, disk_bytes
from workerd.engine.threads import Threads

log = structlog.get_logger()
_GROWTH_SECONDS = 60.0  # how long the growth of running jobs may go unnoticed
_RETRY_SECONDS = 30.0
_MEASURED_AT_ONCE = 256


def must_go(oldest: EndedJob, total_bytes: int, storage: Storage, now_ns: int) -> bool:
    """Return whether a job has to be removed.

    Args:
        oldest: the job, of all those that are left the one that ended first.
        total_bytes: what all jobs that are left take on the disk, running ones included.
        storage: what is allowed.
        now_ns: nanoseconds since the epoch.
    """
    too_old = storage.max_age_seconds > 0 and now_ns - oldest.ended_ns > storage.max_age_seconds * 1e9
    return too_old or 0 < storage.max_total_bytes < total_bytes


def seconds_until_next(
    oldest: EndedJob | None, storage: Storage, now_ns: int, measured_seconds_ago: float = 0.0
) -> float | None:
    """Return after how many seconds to choose again if no job ends before; None for never.

    Args:
        oldest: of the jobs that are left, the one that ended first.
        storage: what is allowed.
        now_ns: nanoseconds since the epoch.
        measured_seconds_ago: when running jobs were last measured.
    """
    waits = [max(0.1, _GROWTH_SECONDS - measured_seconds_ago)] if storage.max_total_bytes > 0 else []
    if storage.max_age_seconds > 0 and oldest is not None:
        waits.append(max(0.1, oldest.ended_ns / 1e9 + storage.max_age_seconds - now_ns / 1e9))
    return min(waits, default=None)


class Retention:
    """Removes jobs, for as long as it runs.

    Args:
        shelf: where the jobs are; entered.
        storage: what is allowed.
        remove: removes the folder of a job that has ended. What it raises puts that off.
    """

    def __init__(self, shelf: Shelf, storage: Storage, remove: Callable[[JobFolder], Awaitable[None]]) -> None:
        self._shelf = shelf
        self._storage = storage
        self._remove = remove
        self._measuring = Threads("measuring jobs", most=1, limit_seconds=_GROWTH_SECONDS)
        self._measured_at: float | None = None
        self._unnoted: dict[str, int] = {}  # bytes of running jobs, by id, which the catalogue could not record
        self._retry_at: dict[str, float] = {}  # of the jobs that could not be removed

    async def run(self, job_ended: asyncio.Event) -> None:
        """Remove what has to go, again whenever a job has ended or enough time has passed, until cancelled."""
        while True:
            job_ended.clear()
            try:
                wait = await self.remove_what_must_go()
            except Exception as error:  # a full disk, say
                log.error("old jobs could not be removed", error=str(error))
                wait = _RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await job_ended.wait()

    async def remove_what_must_go(self) -> float | None:
        """Remove the jobs that are too old, or too much.

        Returns:
            After how many seconds to look again if no job ends before; None for never.
        """
        await self._measure_running()
        catalog = self._shelf.catalog
        # Asked for again each time: a job that has ended since is in the catalogue with its size.
        other_bytes = catalog.unnoted_bytes(self._unnoted) if self._unnoted else 0
        oldest = next(catalog.ended(), None)
        while oldest is not None:
            if not must_go(oldest, catalog.total_bytes() + other_bytes, self._storage, time.time_ns()):
                break
            if not await self._try_remove(oldest.id):
                other_bytes -= oldest.disk_bytes  # no other goes for a job that could not be removed
                await asyncio.sleep(0)
            oldest = next(catalog.ended((oldest.ended_ns, oldest.id)), None)
        now = time.monotonic()
        ago = 0.0 if self._measured_at is None else now - self._measured_at
        wait = seconds_until_next(oldest, self._storage, time.time_ns(), ago)
        self._retry_at = {job_id: at for job_id, at in self._retry_at.items() if at > now}
        waits = [at - now for at in self._retry_at.values()] + ([] if wait is None else [wait])
        return min(waits, default=None)

    async def _try_remove(self, job_id: str) -> bool:
        """Remove a job, unless that failed just now; return whether it has gone. The others do not wait for it."""
        if time.monotonic() < self._retry_at.get(job_id, 0.0):
            return False
        self._retry_at.pop(job_id, None)
        folder = self._shelf.folder(job_id)
        try:
            await self._remove(folder)
        except Exception as error:
            log.error("an old job could not be removed", job=job_id, error=str(error))
        if folder.path.exists():
            self._retry_at[job_id] = time.monotonic() + _RETRY_SECONDS
            return False
        self._shelf.catalog.remove(job_id)  # also if its folder was deleted by hand
        return True

    async def _measure_running(self) -> None:
        """Note in the catalogue what running jobs take, if that is old."""
        now = time.monotonic()
        if self._storage.max_total_bytes == 0 or (
            self._measured_at is not None and now - self._measured_at < _GROWTH_SECONDS
        ):
            return
        catalog, self._unnoted = self._shelf.catalog, {}
        ids = catalog.unended()
        for some in (ids[at : at + _MEASURED_AT_ONCE] for at in range(0, len(ids), _MEASURED_AT_ONCE)):
            sizes = await self._measuring.run(_measure, [self._shelf.folder(job_id).path for job_id in some])
            try:
                catalog.note_sizes(sizes)
            except CatalogFailed:  # the disk is full, and removing jobs makes room
                self._unnoted |= sizes
        self._measured_at = now


def _measure(folders: Iterable[Path]) -> dict[str, int]:
    """Return how much of the disk folders take, by name, without those that are not there."""
    sizes = {}
    for folder in folders:
        with contextlib.suppress(OSError):  # it was not started, or removed, or cannot be read
            sizes[folder.name] = disk_bytes(folder)
    return sizes
