"""The engine: spawns jobs, stops them, tells how they are, reads their logs.

It holds no job: everything about one is in its folder, where its supervisor writes and any engine reads.
"""

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from workerd.engine.account import find_account
from workerd.engine.admission import NO_LIMITS, Admission, JobLimits
from workerd.engine.errors import (
    SHORTAGES,
    CannotStart,
    CatalogBusy,
    CatalogFailed,
    Draining,
    JobNotEnded,
    JobNotFound,
    LimitMet,
    ResourcesExhausted,
    SpoolCorrupt,
    TooManyJobs,
)
from workerd.engine.folder import JobFolder
from workerd.engine.job import Job, JobEnd, JobSpec, JobState, Share, StopOrder, Stream, User, parse_job_id
from workerd.engine.keeper import Keeper
from workerd.engine.launcher import Launcher
from workerd.engine.reader import Gap, LogReader, Output, measure
from workerd.engine.request import SpawnRequest
from workerd.engine.sharing import set_rights
from workerd.engine.shelf import OnEnd, Shelf
from workerd.engine.storage import DEFAULT_STORAGE, Storage

log = structlog.get_logger()
_SCAN_SECONDS = 60.0
_FINISH_SECONDS = 5.0
_KEYED_JOBS = uuid.UUID("6f3c2a51-8d0e-5b7b-9c35-2f1f6f0c9a44")


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first, and the position to go on from; None when there are no more."""

    jobs: tuple[Job, ...]
    next: tuple[int, str] | None


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
        self._storage = storage
        self._admission = Admission(limits)
        self.keeper = Keeper(state_directory, storage, on_end=on_end, on_remove=on_remove) if keeps else None
        self._launcher = Launcher()
        self._spawning: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            if self.keeper is not None:
                await stack.enter_async_context(self.keeper)
            stack.enter_context(self._shelf)
            stack.enter_context(self._launcher)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            for watcher in (self._shelf.watcher, self._shelf.replacements):
                watching = tasks.create_task(watcher.run(), name="watcher")
                stack.push_async_callback(self._finish, watching)
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
        if self._shelf.catalog.is_complete():
            return
        with self._shelf.watcher.watch(self._shelf.directory) as changed:  # the keeper makes it anew
            try:
                async with asyncio.timeout(_SCAN_SECONDS):
                    while not self._shelf.catalog.is_complete():
                        await changed.wait()
                        changed.clear()
            except TimeoutError:
                problem = "it could not be made again from the jobs' folders"
                raise CatalogFailed(self._shelf.directory, problem) from None

    async def spawn(self, request: SpawnRequest) -> str:
        """Start a job and wait until its program runs.

        Args:
            request: what to run. A request of the same owner with the same key finds the job of the first.

        Returns:
            The job's id.

        Raises:
            InvalidArgument: the request asks for what no job could be.
            CannotStart: the program does not run; nothing is left of the job.
            Draining: no new jobs are taken.
            LimitMet: it would be too much; a repeated request never is.
            LauncherFailed: the supervisor failed.
            OSError: the state directory cannot be used.
        """
        request.check(self._storage)
        key = request.request_key
        job_id = str(uuid.uuid5(_KEYED_JOBS, f"{request.owner.id} {key}") if key else uuid.uuid4())
        task = self._spawning.get(job_id)
        if task is None:
            if not self._folder(job_id).path.exists():
                self._admission.admit(request, time.monotonic())
            # A task of the engine's own: a caller who goes away does not leave a job half made.
            task = self._spawning[job_id] = asyncio.create_task(self._spawn(job_id, request, time.time_ns()))
            task.add_done_callback(lambda done: self._spawned(job_id, done))
        await asyncio.shield(task)
        return job_id

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
        """
        folder = self._folder(self.status(job_id).id)
        with contextlib.ExitStack() as stack:
            with _found(job_id):
                changed = stack.enter_context(self._shelf.watcher.watch(folder.path))
            ordered = False
            while True:
                changed.clear()
                job = self.status(job_id)
                if job.ended:
                    return job
                if not ordered:
                    ordered = folder.order_stop(StopOrder(by, grace_seconds))
                elif job.status.state is JobState.STOPPING:
                    return job
                await changed.wait()

    def status(self, job_id: str) -> Job:
        """Tell how a job stands.

        Raises:
            JobIdMalformed: the id is not a UUID.
            JobNotFound: there is no such job.
            SpoolCorrupt: its folder is damaged.
        """
        spec = self.spec(job_id)
        folder = self._folder(spec.id)
        status = folder.read_status()
        if status is None:
            raise JobNotFound(spec.id)
        extent = measure(folder)
        return Job(
            spec=spec,
            status=status,
            stdout_bytes=extent.stdout,
            stderr_bytes=extent.stderr,
            kept_from=extent.kept_from,
        )

    def spec(self, job_id: str) -> JobSpec:
        """Tell what was asked for, and by whom, without looking at anything else of the job.

        Raises:
            JobIdMalformed: the id is not a UUID.
            JobNotFound: there is no such job.
            SpoolCorrupt: its spec is damaged.
        """
        job_id = parse_job_id(job_id)
        with _found(job_id):
            return self._folder(job_id).read_spec()

    def owner(self, job_id: str) -> User:
        """Tell whose job it is, even where its files are damaged or too new; then the name may be missing.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
        """
        job_id = parse_job_id(job_id)
        with _found(job_id):
            owner = self._folder(job_id).read_owner()
        return owner or User(self._shelf.catalog.owner(job_id) or "", "")

    def shares(self, job_id: str) -> tuple[Share, ...]:
        """Tell with whom a job is shared, by name.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            SpoolCorrupt: its folder is damaged.
        """
        job_id = parse_job_id(job_id)
        with _found(job_id):
            return self._folder(job_id).read_shares()

    async def share(self, job_id: str, user: User, rights: Collection[str]) -> tuple[Share, ...]:
        """Set what another user may do with a job from now on, and wait until that is on the disk.

        Args:
            job_id: a UUID as text.
            user: who.
            rights: all that the user is to have; none takes everything back. What they mean is the caller's affair.

        Returns:
            With whom the job is shared now, by name.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            InvalidArgument: it is shared with too many users.
            SpoolCorrupt: its folder is damaged.
        """
        job_id = parse_job_id(job_id)
        with _found(job_id):
            return await asyncio.to_thread(set_rights, self._folder(job_id), user, rights)

    @contextlib.contextmanager
    def watch_shares(self, job_id: str) -> Iterator[asyncio.Event]:
        """Watch for whom a job is shared with.

        Returns:
            An event that is set whenever that may have changed, or the job is removed; never for its output.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            WatchesExhausted: the kernel gives out no more watches.
        """
        job_id = parse_job_id(job_id)
        with contextlib.ExitStack() as stack:
            with _found(job_id):
                changed = stack.enter_context(self._shelf.replacements.watch(self._folder(job_id).path))
            yield changed

    async def remove(self, job_id: str) -> None:
        """Remove a job that has ended, with its log. Whoever reads that log just then finds that the job is gone.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            JobNotEnded: it has not ended.
            Exception: whatever `on_end` raises, if it had not been told of the job's end.
        """
        job = self.status(job_id)
        if not job.ended:
            raise JobNotEnded(job.id)
        try:
            await self._shelf.remove(self._folder(job.id))
        except FileNotFoundError:
            raise JobNotFound(job.id) from None

    async def read_log(
        self, job_id: str, start: Start, streams: Collection[Stream], *, follow: bool
    ) -> AsyncGenerator[Sequence[Output | Gap | JobEnd], None]:
        """Read a job's output from any position.

        Args:
            job_id: a UUID as text.
            start: where to begin.
            streams: which streams; the others are passed over.
            follow: whether to go on with what is yet to come.

        Yields:
            Events in the order in which the output arrived, one or more at a time. The end comes last, and only when
            the job has ended.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            InvalidArgument: the start is beyond the log's end.
            SpoolCorrupt: the log is damaged.
        """
        job = self.status(job_id)
        folder = self._folder(job.id)
        follow = follow or job.ended  # the end of an ended job is part of its log, and at most on its way
        with contextlib.ExitStack() as stack:
            with _found(job_id):
                changed = stack.enter_context(self._shelf.watcher.watch(folder.index))
                reader = stack.enter_context(LogReader(folder, frozenset(streams)))
            limit = reader.size()
            reader.seek(start.offset if start.last is None else max(0, limit - start.last))
            while True:
                changed.clear()
                if events := reader.read():
                    yield events
                if reader.complete:
                    break
                if not follow and reader.position >= limit:
                    return
                if reader.exhausted:
                    await changed.wait()
                else:
                    await asyncio.sleep(0)  # a reader of a long log leaves the others their turn
        end = self.status(job_id).status.end
        if end is None:
            raise AssertionError("a log was complete before its job had ended")
        yield [end]

    async def list_jobs(
        self,
        owner: str | None,
        *,
        states: Collection[JobState],
        name: str,
        size: int,
        after: tuple[int, str] | None,
        is_visible: Callable[[str], bool] = lambda _: True,
    ) -> Page:
        """List jobs, newest first.

        Args:
            owner: only those of the owner with this id; None for everybody's.
            states: only jobs in these states; empty for any.
            name: only jobs with this label; empty for any.
            size: the most jobs to return.
            after: `Page.next` of the page before.
            is_visible: tells by a job's id whether it may be in the list; it may raise JobNotFound.
        """
        await self.wait_scanned()
        jobs: list[Job] = []
        only_unended = bool(states) and JobState.ENDED not in states
        for _, job_id in self._shelf.catalog.newest(owner, before=after, name=name, only_unended=only_unended):
            await asyncio.sleep(0)  # a long list leaves the others their turn
            try:
                if not is_visible(job_id):
                    continue
                job = self.status(job_id)
            except JobNotFound:  # being made, or being removed
                continue
            except SpoolCorrupt as error:
                log.error("a job is left out of a list", job=job_id, error=str(error))
                continue
            if states and job.status.state not in states:
                continue
            if len(jobs) == size:
                return Page(tuple(jobs), (jobs[-1].spec.created_ns, jobs[-1].id))
            jobs.append(job)
        return Page(tuple(jobs), None)

    def _folder(self, job_id: str) -> JobFolder:
        return self._shelf.folder(job_id)

    def _spawned(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._spawning[job_id]
        if task.cancelled():
            return
        if (error := task.exception()) is not None and not isinstance(error, CannotStart | Draining | LimitMet):
            log.error("a job could not be started", job=job_id, error=str(error))  # its caller may have gone

    async def _spawn(self, job_id: str, request: SpawnRequest, created_ns: int) -> None:
        try:
            if not self._folder(job_id).path.exists():
                await self._check_room(request.owner)
            account = await asyncio.to_thread(find_account, request.run_as) if request.run_as else None
            spec = request.specify(job_id, created_ns, self._storage, account)
            lock = await self._claim(spec)
            if lock is not None:
                await self._start(spec, lock)
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            raise ResourcesExhausted(request.program, f"{error.filename or 'the system'}: {error.strerror}") from error

    async def _claim(self, spec: JobSpec) -> int | None:
        """Take a job that is to be started; return the lock of its folder, or None when it has been started."""
        folder = self._folder(spec.id)
        while True:
            lock = self._shelf.claim(spec)
            if lock is not None:
                return lock
            # Another spawn with the same key was first. The job will run, or end, or its folder goes away; then another
            # folder may have come already, hence a new watch each time.
            with contextlib.suppress(FileNotFoundError), self._shelf.watcher.watch(folder.path) as changed:
                status = folder.read_status()
                if status is not None and status.state is not JobState.STARTING:
                    return None
                await changed.wait()

    async def _start(self, spec: JobSpec, lock: int) -> None:
        folder = self._folder(spec.id)
        try:
            if self._shelf.drain.exists():
                raise Draining
            await self._enter(spec)
            await self._launcher.launch(folder.path, lock)
        except asyncio.CancelledError:
            raise  # what was executed is not known here: the keeper sees it from the folder
        except BaseException:
            # With a status the program may have been executed: the keeper ends the job as lost, and its key finds it.
            if folder.read_status() is None:
                await self._shelf.forget(folder)
            raise
        finally:
            os.close(lock)

    async def _enter(self, spec: JobSpec) -> None:
        """Enter a job into the catalogue, which counts it from then on.

        Raises:
            TooManyJobs: as many run as may.
        """
        limits = self._admission.limits
        most, most_of_owner = limits.max_jobs, limits.max_jobs_per_user
        try:
            ended: frozenset[str] = frozenset()
            while not self._shelf.catalog.add(spec, most=most, most_of_owner=most_of_owner, besides=ended):
                ended = await self._ended_unnoticed(spec.owner)
                if (refusal := self._too_many(spec.owner, ended)) is not None:
                    raise refusal
        except CatalogBusy as error:
            log.error("a job is not listed before it has ended", job=spec.id, error=str(error))

    async def _check_room(self, owner: User) -> None:
        """Refuse a job that will be too many before anything is made of it; `_enter` has the last word.

        Raises:
            TooManyJobs: as many run as may.
        """
        limits = self._admission.limits
        if not (limits.max_jobs or limits.max_jobs_per_user):
            return
        with contextlib.suppress(CatalogBusy):
            if self._too_many(owner, frozenset()) is None:
                return
            ended = await self._ended_unnoticed(owner)
            if (refusal := self._too_many(owner, ended)) is not None:
                raise refusal

    def _too_many(self, owner: User, ended: frozenset[str]) -> TooManyJobs | None:
        """Tell which limit leaves no room for another job of an owner, if any."""
        limits, catalog = self._admission.limits, self._shelf.catalog
        if 0 < limits.max_jobs_per_user <= catalog.count_unended(owner.id, ended):
            return TooManyJobs("max-jobs-per-user", "yours", limits.max_jobs_per_user)
        if 0 < limits.max_jobs <= catalog.count_unended(None, ended):
            return TooManyJobs("max-jobs", "all users", limits.max_jobs)
        return None

    async def _ended_unnoticed(self, owner: User) -> frozenset[str]:
        """Find the jobs that have ended, though the keeper has not come to enter that yet: their ids."""
        ended = set()
        limits, catalog = self._admission.limits, self._shelf.catalog
        unended = catalog.unended()
        if len(unended) < limits.max_jobs or not limits.max_jobs:
            unended = catalog.unended_of(owner.id)
        self._admission.note_looks(owner.id, len(unended), time.monotonic())
        for job_id in unended:
            await asyncio.sleep(0)  # a long look leaves the others their turn
            folder = self._folder(job_id)
            with contextlib.suppress(SpoolCorrupt):
                status = folder.read_status()
                if not folder.path.exists() or (status is not None and status.state is JobState.ENDED):
                    ended.add(job_id)
        return frozenset(ended)

    async def _finish(self, watching: asyncio.Task[None]) -> None:
        if self._spawning:
            _, given_up = await asyncio.wait(self._spawning.values(), timeout=_FINISH_SECONDS)
            if given_up:
                log.warning("jobs that are still being started are left to the next daemon", jobs=[*self._spawning])
                for task in given_up:
                    task.cancel()
                await asyncio.wait(given_up)
        watching.cancel()


@contextlib.contextmanager
def _found(job_id: str) -> Iterator[None]:
    """Take a file that is not there for a job that another process has just removed."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise JobNotFound(job_id) from None
