"""The engine: spawns jobs, stops them, tells how they are, reads their logs.

It holds no job: everything about one is in its folder, where its supervisor writes and any engine reads.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from workerd.engine.admission import NO_LIMITS, JobLimits
from workerd.engine.catalog import Reach
from workerd.engine.errors import FormatTooNew, JobNotEnded, JobNotFound, SpoolCorrupt
from workerd.engine.job import (
    DamagedJob,
    Job,
    JobEnd,
    JobSpec,
    JobState,
    Share,
    StopOrder,
    Stream,
    User,
    parse_job_id,
)
from workerd.engine.journal import Journal
from workerd.engine.keeper import Keeper
from workerd.engine.launcher import Launcher
from workerd.engine.listing import PAGE_BYTES, PAGE_SECONDS, Page, row_bytes, shorten
from workerd.engine.old_format import read_old_owner
from workerd.engine.reader import CHUNK_BYTES, Gap, LogReader, Output
from workerd.engine.request import SpawnRequest
from workerd.engine.sharing import Bind, Sharer, grantees_of
from workerd.engine.shelf import OnEnd, Shelf
from workerd.engine.spawner import Spawner
from workerd.engine.standing import Found, read_job, wait_readable
from workerd.engine.stopping import Stopper
from workerd.engine.storage import DEFAULT_STORAGE, Storage
from workerd.engine.watcher import Change

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Start:
    """Where to start reading a log: at `offset`, or `last` bytes before its end as it stands if that is given."""

    offset: int = 0
    last: int | None = None


class Engine:
    """Runs jobs below one state directory. An asynchronous context manager.

    Args:
        state_directory: made if it does not exist.
        storage: what is kept of jobs.
        limits: what is taken on. The number of jobs is that of all engines of the state directory together, the others
            are for each.
        keeps: whether it has a keeper of its own. Of all engines of a state directory, in however many processes, one
            may; the others work under a keeper that is there already.
        on_end: told of each job that ends, as `Keeper` does it; without a keeper, of those that are removed before a
            keeper has told of them.
        on_remove: as `Keeper` has it.

    Attributes:
        keeper: its own, if any.

    Raises:
        StateDirectoryInUse: on entering, when another keeper holds it.
        StorageUnfit: on entering, when its file system cannot do what `storage` asks for.
    """

    def __init__(
        self,
        state_directory: Path,
        storage: Storage = DEFAULT_STORAGE,
        *,
        limits: JobLimits = NO_LIMITS,
        keeps: bool = True,
        on_end: OnEnd | None = None,
        on_remove: Callable[[str], None] | None = None,
    ) -> None:
        self._shelf = Shelf(state_directory, on_end)
        self.keeper = (
            Keeper(state_directory, storage, on_end=on_end, on_remove=on_remove, max_ending=limits.max_ending)
            if keeps
            else None
        )
        self._launcher = Launcher()
        self._spawner = Spawner(self._shelf, storage, limits, self._launcher)
        self._stopper = Stopper(self._shelf, self.status)
        self._sharer = Sharer()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if self.keeper is not None:
                await stack.enter_async_context(self.keeper)
            stack.enter_context(self._shelf)
            stack.enter_context(self._launcher)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            for watcher in (self._shelf.watcher, self._shelf.replacements):
                stack.callback(tasks.create_task(watcher.run(), name="watcher").cancel)
            stack.push_async_callback(self._stopper.aclose)
            stack.push_async_callback(self._spawner.aclose)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def wait_scanned(self) -> None:
        """Wait until the keeper has taken up every job that was there when it started, and the catalogue is complete.

        Raises:
            CatalogFailed: it could not be completed.
        """
        if self.keeper is not None:
            await self.keeper.wait_scanned()
        await self._shelf.wait_complete()

    async def spawn(self, request: SpawnRequest, is_wanted: Callable[[], bool] = lambda: True) -> str:
        """Start a job, as `workerd.engine.spawner.Spawner` does it, and return its id."""
        return await self._spawner.spawn(request, is_wanted)

    async def stop(self, job_id: str, by: User, grace_seconds: float) -> Job:
        """Order a job to be stopped, and wait until its supervisor has taken the order.

        Args:
            job_id: a UUID as text.
            by: who asks.
            grace_seconds: between SIGTERM and SIGKILL; zero is SIGKILL at once.

        Returns:
            The job as it stands then.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            SpoolCorrupt: it is damaged.
            StopUnconfirmed: it does not end within a limit.
        """
        folder = self._shelf.folder(parse_job_id(job_id))
        with _Finding(job_id):
            return await self._stopper.stop(folder, StopOrder(by, grace_seconds))

    def status(self, job_id: str) -> Job:
        """Return how a job stands.

        Raises:
            JobIdMalformed: the id is not a UUID.
            JobNotFound: there is no such job.
            SpoolCorrupt: its folder is damaged.
        """
        job_id = parse_job_id(job_id)
        with _Finding(job_id):
            return read_job(self._shelf.folder(job_id), self._shelf.catalog)

    def status_of(self, found: Found) -> Job:
        """Return how a job stands that has just been found, as `status` does, without reading its journal again."""
        with _Finding(found.job_id):
            return read_job(self._shelf.folder(found.job_id), self._shelf.catalog, found.journal)

    def spec(self, job_id: str) -> JobSpec:
        """Return what was asked for, and by whom, without looking at anything else of the job.

        Raises:
            JobIdMalformed: the id is not a UUID.
            JobNotFound: there is no such job.
            SpoolCorrupt: its spec is damaged.
        """
        job_id = parse_job_id(job_id)
        with _Finding(job_id):
            return self._shelf.folder(job_id).read_spec()

    def find(self, job_id: str) -> Found:
        """Return whose job it is and with whom it is shared, even where its files are damaged or too new.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
        """
        job_id = parse_job_id(job_id)
        folder = self._shelf.folder(job_id)
        with _Finding(job_id):
            try:
                journal: Journal | None = folder.read()
            except SpoolCorrupt:
                journal, owner = None, read_old_owner(folder.path)
            else:
                owner = None if journal is None or journal.spec is None else journal.spec.owner
            try:
                shares = folder.read_shares()
            except SpoolCorrupt as error:
                log.error("a job's shares cannot be read: none of them counts", job=job_id, error=str(error))
                shares = ()
        return Found(job_id, owner or User(self._shelf.catalog.owner(job_id) or "", ""), shares, journal)

    def shares(self, job_id: str) -> tuple[Share, ...]:
        """Return with whom a job is shared, by name.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            SpoolCorrupt: its folder is damaged.
        """
        job_id = parse_job_id(job_id)
        with _Finding(job_id):
            return self._shelf.folder(job_id).read_shares()

    async def share(
        self,
        job_id: str,
        user: User,
        rights: Collection[str],
        bind: Bind = lambda shares: shares,
    ) -> tuple[Share, ...]:
        """Set what another user may do with a job from now on, and wait until that is on the disk.

        Args:
            job_id: a UUID as text.
            user: who; without an id if only the name is known.
            rights: all that the user is to have; none takes everything back. What they mean is the caller's affair.
            bind: return shares with the ids of users who had none when the job was shared with them.

        Returns:
            With whom the job is shared now, by name.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            InvalidArgument: it is shared with too many users.
            SpoolCorrupt: its folder is damaged.
            NoAnswer: that takes too long.
        """
        job_id = parse_job_id(job_id)
        with _Finding(job_id):
            shares = await self._sharer.set_rights(self._shelf.folder(job_id), user, rights, bind)
        self._shelf.catalog.add_shares(job_id, grantees_of(shares))
        return shares

    @contextlib.contextmanager
    def watch_shares(self, job_id: str) -> Iterator[Change]:
        """Watch for whom a job is shared with.

        Returns:
            An event that is set whenever that may have changed, or the job is removed; never for what else it does.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            WatchesExhausted: the kernel gives out no more watches.
        """
        job_id = parse_job_id(job_id)
        with contextlib.ExitStack() as stack:
            with _Finding(job_id):
                folder = self._shelf.folder(job_id)
                changed = stack.enter_context(self._shelf.replacements.watch(folder.path, folder.shares.name))
            yield changed

    async def remove(self, job_id: str) -> None:
        """Remove a job that has ended, with its log. Whoever reads that log just then finds that the job is gone.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            JobNotEnded: it has not ended.
            Exception: whatever `on_end` raises, if it had not been told of the job's end.
        """
        folder = self._shelf.folder(parse_job_id(job_id))
        with _Finding(folder.job_id):
            try:
                job = self.status(job_id)
            except FormatTooNew:
                raise
            except SpoolCorrupt:
                if folder.is_watched():
                    raise JobNotEnded(folder.job_id) from None
                await self._shelf.remove_damaged(folder)
                return
            if not job.ended:
                raise JobNotEnded(job.id)
            await self._shelf.remove(folder, job.spec.created_ns)

    async def read_log(
        self,
        job_id: str,
        start: Start,
        streams: Collection[Stream],
        *,
        follow: bool,
        room: Callable[[], int] = lambda: CHUNK_BYTES,
        pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0),
    ) -> AsyncGenerator[Sequence[Output | Gap | JobEnd], None]:
        """Read a job's output from any position.

        Args:
            job_id: a UUID as text.
            start: where to begin.
            streams: which streams; the others are passed over.
            follow: whether to go on with what is yet to come.
            room: tells how many bytes of output are wanted next at most, so that nothing is held that nobody takes yet.
            pause: awaited before each read.

        Yields:
            Events in the order in which the output arrived, one or more at a time. The end comes last, and only when
            the job has ended.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            InvalidArgument: the start is beyond the log's end.
            SpoolCorrupt: the log is damaged.
        """
        job = shorten(self.status(job_id))
        folder = self._shelf.folder(job.id)
        follow = follow or job.ended  # the end of an ended job is part of its log, and at most on its way
        with contextlib.ExitStack() as stack:
            with _Finding(job_id):
                if not job.ended:
                    await wait_readable(folder, self._shelf)
                with folder.requiring_files():
                    changed = stack.enter_context(self._shelf.watcher.watch(folder.index))
                reader = stack.enter_context(LogReader(folder, frozenset(streams)))
            limit = reader.size()
            reader.seek(start.offset if start.last is None else max(0, limit - start.last))
            while True:
                await pause()
                changed.clear()
                if events := reader.read(room()):
                    yield events
                if reader.complete:
                    break
                if not follow and reader.position >= limit:
                    return
                if not reader.exhausted:
                    await asyncio.sleep(0)  # lets the client make room for more
                elif job.ended:  # which was complete when this began
                    raise SpoolCorrupt(folder.index, f"the log goes on to byte {limit}, and nothing checks there")
                else:
                    await changed.wait()
        after = self.status(job_id)
        if after.spec.created_ns != job.spec.created_ns:  # it was removed, and its key has made it again
            raise JobNotFound(job.id)
        if after.status.end is None:
            raise AssertionError("a log was complete before its job had ended")
        yield [after.status.end]

    async def list_jobs(
        self,
        owner: str | Reach | None,
        *,
        states: Collection[JobState],
        name: str,
        size: int,
        after: tuple[int, str] | None,
        is_visible: Callable[[Found], bool] = lambda _: True,
        pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0),
    ) -> Page:
        """List jobs, newest first, each as `workerd.engine.listing.shorten` leaves it.

        Args:
            owner: only those of the owner with this id, or within this reach; None for everybody's.
            states: only jobs in these states; empty for any.
            name: only jobs with this label; empty for any.
            size: the most jobs to return. There are fewer where they take more than `PAGE_BYTES` or `PAGE_SECONDS`.
            after: `Page.next` of the page before.
            is_visible: whether a job may be in the list.
            pause: awaited before each job is looked at.
        """
        await self.wait_scanned()
        rows: list[Job | DamagedJob] = []
        position, left, ends = after, PAGE_BYTES, time.monotonic() + PAGE_SECONDS
        only_unended = bool(states) and not {JobState.ENDED, JobState.DAMAGED}.intersection(states)
        for place in self._shelf.catalog.newest(owner, before=after, name=name, only_unended=only_unended):
            await pause()
            created_ns, job_id = place
            try:
                found = self.find(job_id)
                if not is_visible(found):
                    continue
                row = self._row(found, created_ns)
            except JobNotFound:  # being made, or being removed
                continue
            if states and (JobState.DAMAGED if isinstance(row, DamagedJob) else row.status.state) not in states:
                position = place
                if time.monotonic() < ends:
                    continue
                return Page(tuple(rows), position)
            left -= row_bytes(row)
            if len(rows) == size or (rows and left < 0):
                return Page(tuple(rows), position)
            rows.append(row)
            position = place
        return Page(tuple(rows), None)

    def _row(self, found: Found, created_ns: int) -> Job | DamagedJob:
        try:
            return shorten(self.status_of(found))
        except SpoolCorrupt as error:
            damage = f"{error.path.name}: {error.problem}"
            return DamagedJob(id=found.job_id, owner=found.owner, created_ns=created_ns, damage=damage)


class _Finding:
    """Takes a file that is not there for a job that another process has just removed.

    Not a generator: what `contextlib` makes of one leaves a cycle with each error (Python 3.13).
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise JobNotFound(self._job_id) from None
