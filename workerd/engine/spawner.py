"""Starting jobs: each once, as many as may be, and whole or not at all.

A spawn is a task of the engine's own, so that a caller who goes away leaves no job half made.
"""

import asyncio
import contextlib
import functools
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import structlog

from workerd.engine.account import find_account
from workerd.engine.admission import Admission, JobLimits
from workerd.engine.errors import (
    SHORTAGES,
    CannotStart,
    CatalogBusy,
    Draining,
    LimitMet,
    NeverForced,
    NoAnswer,
    ResourcesExhausted,
    SpawnGivenUp,
    SpoolCorrupt,
    StartUnconfirmed,
    TooManyJobs,
)
from workerd.engine.folder import JobFolder
from workerd.engine.job import JobSpec, JobState, JobStatus, User
from workerd.engine.launcher import START_SECONDS, Launcher
from workerd.engine.request import SpawnRequest
from workerd.engine.shelf import Shelf
from workerd.engine.storage import Storage, can_limit_logs
from workerd.engine.threads import Threads

log = structlog.get_logger()
_FINISH_SECONDS = 5.0
_ACCOUNT_SECONDS = 30.0  # where accounts are kept on another machine, that may be down


@dataclass(slots=True)
class _Spawning:
    """A job that is being started, and who waits for it."""

    task: asyncio.Task[None] = field(init=False)
    callers: list[Callable[[], bool]] = field(default_factory=list)

    def is_wanted(self) -> bool:
        """Return whether any caller is still there."""
        return any(is_wanted() for is_wanted in self.callers)


class Spawner:
    """Starts jobs on a shelf, which is entered.

    Args:
        storage: what is kept of jobs.
        limits: what is taken on.
        launcher: makes their supervisors; entered.
    """

    def __init__(self, shelf: Shelf, storage: Storage, limits: JobLimits, launcher: Launcher) -> None:
        self._shelf = shelf
        self._storage = storage
        self._admission = Admission(limits)
        self._launcher = launcher
        self._turns = asyncio.Semaphore(limits.max_starting or sys.maxsize)
        self._looking_up = Threads("looking up an account", most=4, limit_seconds=_ACCOUNT_SECONDS)
        self._spawning: dict[str, _Spawning] = {}

    async def spawn(self, request: SpawnRequest, is_wanted: Callable[[], bool] = lambda: True) -> str:
        """Start a job and wait until its program runs.

        Args:
            request: what to run. A request of the same owner with the same key finds the job of the first.
            is_wanted: return whether the caller is still there. A job that no caller waits for is not started.

        Returns:
            The job's id.

        Raises:
            InvalidArgument: the request asks for what no job could be.
            CannotStart: the program does not run; nothing is left of the job.
            Draining: no new jobs are taken.
            LimitMet: it would be too much; a repeated request never is.
            SpawnGivenUp: nobody waits for it any more.
            NoAnswer: something that it takes did not answer in time; StartUnconfirmed if the program may run.
            LauncherFailed: the supervisor failed.
            OSError: the state directory cannot be used.
        """
        request.check(self._storage, lambda: self._can_limit_logs)
        owner_id, key = request.owner.id, request.request_key
        if key and (earlier := await self._find_earlier(owner_id, key)) is not None:
            return earlier
        job_id = self._shelf.keys.job_id(owner_id, key) if key else str(uuid.uuid4())
        spawning = self._spawning.get(job_id)
        if spawning is None:
            if not self._shelf.folder(job_id).path.exists():
                self._admission.admit(request, time.monotonic())
            spawning = self._spawning[job_id] = _Spawning()
            spawning.task = asyncio.create_task(self._spawn(job_id, request, time.time_ns(), spawning))
            spawning.task.add_done_callback(lambda done: self._spawned(job_id, done))
        spawning.callers.append(is_wanted)
        await asyncio.shield(spawning.task)
        return job_id

    @functools.cached_property
    def _can_limit_logs(self) -> bool:
        return can_limit_logs(self._shelf.directory)

    async def aclose(self) -> None:
        """Wait for the jobs that are being started; those that take too long are left to the next daemon."""
        if not self._spawning:
            return
        _, given_up = await asyncio.wait([each.task for each in self._spawning.values()], timeout=_FINISH_SECONDS)
        if given_up:
            log.warning("jobs that are still being started are left to the next daemon", jobs=[*self._spawning])
            for task in given_up:
                task.cancel()
            await asyncio.wait(given_up)

    def _spawned(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._spawning[job_id]
        if task.cancelled():
            return
        if (error := task.exception()) is not None and not isinstance(
            error, CannotStart | Draining | LimitMet | SpawnGivenUp
        ):
            log.error("a job could not be started", job=job_id, error=str(error))  # its caller may have gone

    async def _find_earlier(self, owner_id: str, key: str) -> str | None:
        """Return the id of a job that was spawned with this key without the secret that there is now; None if none was.

        Raises:
            SpoolCorrupt: its folder is damaged.
            StartUnconfirmed: a spawn that an earlier daemon began makes no progress.
        """
        for job_id in self._shelf.keys.earlier_ids(owner_id, key):
            try:
                async with asyncio.timeout(START_SECONDS):
                    if await self._wait_started(self._shelf.folder(job_id)):
                        return job_id
            except TimeoutError:
                raise StartUnconfirmed(job_id, START_SECONDS) from None
        return None

    async def _spawn(self, job_id: str, request: SpawnRequest, created_ns: int, spawning: "_Spawning") -> None:
        try:
            folder = self._shelf.folder(job_id)
            if not folder.path.exists():
                await self._check_room(request.owner)
            with contextlib.suppress(FileNotFoundError):
                if _has_started(folder, _read_status(folder)):  # and what it runs as may not be there any more
                    return
            account = await self._looking_up.run(find_account, request.run_as) if request.run_as else None
            spec = request.specify(job_id, created_ns, self._storage, account)
            async with self._turn():  # not before: a spawn that waits for its turn has nothing open
                lock = await self._claim(spec)
                if lock is not None:
                    await self._start(spec, lock, spawning)
        except OSError as error:
            if error.errno not in SHORTAGES:
                raise
            raise ResourcesExhausted(request.program, f"{error.filename or 'the system'}: {error.strerror}") from error

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait until few enough jobs are being started.

        Raises:
            NoAnswer: they make no progress.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise NoAnswer("starting the jobs before this one", START_SECONDS) from None
        try:
            yield
        finally:
            self._turns.release()

    async def _claim(self, spec: JobSpec) -> int | None:
        """Take a job that is to be started; return the lock of its folder, or None when it has been started.

        Raises:
            SpoolCorrupt: its folder is there and damaged.
            StartUnconfirmed: another spawn with the same key does not get on.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                return await self._wait_claim(spec)
        except TimeoutError:
            raise StartUnconfirmed(spec.id, START_SECONDS) from None

    async def _wait_claim(self, spec: JobSpec) -> int | None:
        folder = self._shelf.folder(spec.id)
        while (lock := self._shelf.claim(spec)) is None:  # another spawn with the same key was first
            if await self._wait_started(folder):
                return None
        return lock

    async def _wait_started(self, folder: JobFolder) -> bool:
        """Wait until the job of a folder has started, or nothing is left of it; return whether it has started.

        Raises:
            SpoolCorrupt: the folder is damaged.
        """
        # The folder may go away, and another may have come already: a new watch each time.
        while folder.path.exists():
            with contextlib.suppress(FileNotFoundError), self._shelf.watcher.watch(folder.path) as changed:
                status = _read_status(folder)
                if _has_started(folder, status):
                    return True
                if status is None and (left := folder.try_lock()) is not None:
                    if not await self._clear(folder, left):
                        return True
                else:
                    await changed.wait()
        return False

    async def _clear(self, folder: JobFolder, lock: int) -> bool:
        """Remove what another spawn left, if it was given up before its program was executed; return whether it was.

        Raises:
            SpoolCorrupt: the folder is damaged.
        """
        try:
            return await self._shelf.clear(folder)
        finally:
            os.close(lock)

    async def _start(self, spec: JobSpec, lock: int, spawning: "_Spawning") -> None:
        folder = self._shelf.folder(spec.id)
        try:
            if self._shelf.drain.exists():
                raise Draining
            await self._enter(spec)
            await self._launcher.launch(folder, lock, spawning.is_wanted)
        except (asyncio.CancelledError, StartUnconfirmed):
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
        """Return the limit that leaves no room for another job of an owner, if any."""
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
            folder = self._shelf.folder(job_id)
            with contextlib.suppress(SpoolCorrupt):
                status = folder.read_status()
                if not folder.path.exists() or (status is not None and status.state is JobState.ENDED):
                    ended.add(job_id)
        return frozenset(ended)


def _has_started(folder: JobFolder, status: JobStatus | None) -> bool:
    """Return whether a job's program was executed, or may have been before its supervisor ended."""
    return status is not None and (status.state is not JobState.STARTING or not folder.is_locked())


def _read_status(folder: JobFolder) -> JobStatus | None:
    """Read where a job stands; None when nothing of it has been executed, or a power cut took all that it was."""
    try:
        return folder.read_status()
    except NeverForced:
        return None
