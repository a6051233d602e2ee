"""The engine: spawns jobs, stops them, tells how they are, reads their logs.

It holds no job: everything about one is in its folder, where its supervisor writes and any engine reads.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from workerd.engine.catalog import Catalog
from workerd.engine.errors import (
    CannotStart,
    CatalogFailed,
    JobIdMalformed,
    JobNotEnded,
    JobNotFound,
    ResourcesExhausted,
    SpoolCorrupt,
    StateDirectoryInUse,
)
from workerd.engine.folder import JobFolder
from workerd.engine.job import (
    Job,
    JobEnd,
    JobSpec,
    JobState,
    StopOrder,
    Stream,
    User,
    parse_job_id,
)
from workerd.engine.launcher import Launcher
from workerd.engine.reader import Gap, LogReader, Output, measure
from workerd.engine.recovery import has_end, recover
from workerd.engine.request import SpawnRequest
from workerd.engine.retention import choose_removals, seconds_until_next
from workerd.engine.storage import DEFAULT_STORAGE, Storage, check_file_system, disk_bytes
from workerd.engine.watcher import Watcher

log = structlog.get_logger()
_PAUSES_SECONDS = (1.0, 5.0, 30.0)
_LOOKS_SECONDS = (0.001, 0.01, 0.1, 1.0)
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
        state_directory: made if it does not exist; one engine at a time may hold it.
        storage: what is kept of jobs.

    Raises:
        StateDirectoryInUse: on entering, when another holds it.
        StorageUnfit: on entering, when its file system cannot do what `storage` asks for.
    """

    def __init__(self, state_directory: Path, storage: Storage = DEFAULT_STORAGE) -> None:
        self._directory = state_directory
        self._jobs = state_directory / "jobs"
        self._removed = state_directory / "removed"
        self._storage = storage
        self._launcher = Launcher()
        self._spawning: dict[str, asyncio.Task[None]] = {}
        self._guards: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._jobs.mkdir(mode=0o700, exist_ok=True)
        self._removed.mkdir(mode=0o700, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_hold(self._directory))
            if self._storage.max_log_bytes:
                check_file_system(self._directory)
            self._catalog = stack.enter_context(Catalog(self._directory / "catalog.sqlite"))
            stack.enter_context(self._launcher)
            self._watcher = stack.enter_context(Watcher())
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            watching = self._tasks.create_task(self._watcher.run(), name="watcher")
            self._job_ended = asyncio.Event()
            self._scanning = self._tasks.create_task(self._scan(), name="scan")
            retaining = self._tasks.create_task(self._retain(), name="retain")
            stack.push_async_callback(self._finish, watching, retaining)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def wait_scanned(self) -> None:
        """Wait until every job that was there when the engine started has been taken up, and the catalogue is complete.

        Raises:
            CatalogFailed: it could not be completed.
        """
        await asyncio.shield(self._scanning)
        if not self._catalog.is_complete():  # it has been deleted since
            if self._scanning.done():
                self._scanning = self._tasks.create_task(self._scan(), name="scan")
            await asyncio.shield(self._scanning)
            if not self._catalog.is_complete():
                raise CatalogFailed(self._directory, "it could not be made again from the jobs' folders")

    async def spawn(self, request: SpawnRequest) -> str:
        """Start a job and wait until its program runs.

        Args:
            request: what to run. A request of the same owner with the same key finds the job of the first.

        Returns:
            The job's id.

        Raises:
            InvalidArgument: the request asks for what no job could be.
            CannotStart: the program does not run; nothing is left of the job.
            LauncherFailed: the supervisor failed.
        """
        request.check(self._storage)
        key = request.request_key
        job_id = str(uuid.uuid5(_KEYED_JOBS, f"{request.owner.id} {key}") if key else uuid.uuid4())
        task = self._spawning.get(job_id)
        if task is None:
            # A task of the engine's own: a caller who goes away does not leave a job half made.
            spec = request.specify(job_id, time.time_ns(), self._storage)
            task = self._spawning[job_id] = asyncio.create_task(self._spawn(spec))
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
        with self._watcher.watch(folder.path) as changed:
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
        job_id = parse_job_id(job_id)
        folder = self._folder(job_id)
        try:
            spec = folder.read_spec()
        except (FileNotFoundError, NotADirectoryError):
            raise JobNotFound(job_id) from None
        status = folder.read_status()
        if status is None:
            raise JobNotFound(job_id)
        extent = measure(folder)
        return Job(
            spec=spec,
            status=status,
            stdout_bytes=extent.stdout,
            stderr_bytes=extent.stderr,
            kept_from=extent.kept_from,
        )

    async def remove(self, job_id: str) -> None:
        """Remove a job that has ended, with its log. Whoever reads that log just then finds that the job is gone.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            JobNotEnded: it has not ended.
        """
        job = self.status(job_id)
        if not job.ended:
            raise JobNotEnded(job.id)
        await self._remove(self._folder(job.id))

    async def read_log(
        self, job_id: str, start: Start, streams: Collection[Stream], *, follow: bool
    ) -> AsyncGenerator[Output | Gap | JobEnd, None]:
        """Read a job's output from any position.

        Args:
            job_id: a UUID as text.
            start: where to begin.
            streams: which streams; the others are passed over.
            follow: whether to go on with what is yet to come.

        Yields:
            Events in the order in which the output arrived. The end comes last, and only when the job has ended.

        Raises:
            JobIdMalformed, JobNotFound: there is no such job.
            InvalidArgument: the start is beyond the log's end.
            SpoolCorrupt: the log is damaged.
        """
        job = self.status(job_id)
        folder = self._folder(job.id)
        follow = follow or job.ended  # the end of an ended job is part of its log, and at most on its way
        with self._watcher.watch(folder.index) as changed, LogReader(folder, frozenset(streams)) as reader:
            limit = reader.size()
            reader.seek(start.offset if start.last is None else max(0, limit - start.last))
            while True:
                changed.clear()
                position = reader.position
                for event in reader.read():
                    yield event
                if reader.complete:
                    break
                if not follow and reader.position >= limit:
                    return
                if reader.position > position:
                    await asyncio.sleep(0)  # a reader of a long log leaves the others their turn
                else:
                    await changed.wait()
        end = self.status(job_id).status.end
        if end is None:
            raise AssertionError("a log was complete before its job had ended")
        yield end

    async def list_jobs(
        self, owner: str, *, states: Collection[JobState], name: str, size: int, after: tuple[int, str] | None
    ) -> Page:
        """List an owner's jobs, newest first.

        Args:
            owner: the owner's id.
            states: only jobs in these states; empty for any.
            name: only jobs with this label; empty for any.
            size: the most jobs to return.
            after: `Page.next` of the page before.
        """
        await self.wait_scanned()
        jobs: list[Job] = []
        only_unended = bool(states) and JobState.ENDED not in states
        for _, job_id in self._catalog.newest(owner, before=after, name=name, only_unended=only_unended):
            try:
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
        return JobFolder(self._jobs / job_id)

    def _spawned(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._spawning[job_id]
        if (error := task.exception()) is not None and not isinstance(error, CannotStart):
            log.error("a job could not be started", job=job_id, error=str(error))  # its caller may have gone

    async def _spawn(self, spec: JobSpec) -> None:
        folder = self._folder(spec.id)
        try:
            try:
                if not await self._claim(folder, spec):
                    return
            except BaseException:
                with contextlib.suppress(OSError):
                    folder.path.rmdir()  # which it does only to an empty one: nothing has got into it
                raise
        except OSError as error:
            raise ResourcesExhausted(spec.program, f"{error.filename or 'the system'}: {error.strerror}") from error
        self._guard(folder)

    async def _claim(self, folder: JobFolder, spec: JobSpec) -> bool:
        """Start the job of a folder unless that has been done; return whether it was done here."""
        lock = None
        try:
            while lock is None:  # whoever holds it is starting the job, has started it, or is removing it
                folder.path.mkdir(mode=0o700, exist_ok=True)
                with contextlib.suppress(FileNotFoundError), self._watcher.watch(folder.path) as changed:
                    lock = folder.try_lock()
                    status = folder.read_status()
                    if status is not None and (lock is not None or status.state is not JobState.STARTING):
                        return False
                    if lock is None:
                        await changed.wait()
            try:
                folder.write_spec(spec)
                self._catalog.add(spec)
                await self._launcher.launch(folder.path, lock)
            except BaseException:
                if folder.read_status() is None:
                    await self._forget(folder)
                else:  # the program may have been executed: the job is ended as lost, and its key finds it
                    self._guard(folder)
                raise
        finally:
            if lock is not None:
                os.close(lock)
        return True

    async def _forget(self, folder: JobFolder) -> None:
        """Remove a job's folder, at one stroke for whoever looks. The caller holds its lock."""
        removed = self._removed / f"{folder.path.name}.{time.time_ns()}"
        folder.path.rename(removed)
        try:
            await asyncio.to_thread(shutil.rmtree, removed)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread; the next scan removes it
            log.error("the files of a removed job are still there", folder=str(removed), error=str(error))
        try:
            self._catalog.remove(folder.path.name)
        except CatalogFailed as error:  # the next scan takes it out
            log.error("a removed job could not be taken out of the catalogue", job=folder.path.name, error=str(error))

    async def _remove(self, folder: JobFolder) -> None:
        lock = None
        while lock is None:  # its supervisor is about to leave, or somebody is just looking after it
            await self._wait_unlocked(folder)
            lock = folder.try_lock()
        try:
            await self._forget(folder)
        finally:
            os.close(lock)
        log.info("a job was removed", job=folder.path.name)

    def _guard(self, folder: JobFolder) -> None:
        """See to it that a job whose supervisor vanishes is ended."""
        name = folder.path.name
        if name not in self._guards:
            task = self._tasks.create_task(self._see_to_its_end(folder), name=f"guard {name}")
            self._guards[name] = task
            task.add_done_callback(lambda _: self._guards.pop(name))

    async def _see_to_its_end(self, folder: JobFolder) -> None:
        for pause in itertools.chain(_PAUSES_SECONDS, itertools.repeat(_PAUSES_SECONDS[-1])):
            try:
                await self._wait_unlocked(folder)
                if await asyncio.to_thread(recover, folder):
                    log.warning("a job was lost: its supervisor vanished", job=folder.path.name)
                self._enter_ended(folder)
            except FileNotFoundError:
                return  # somebody removed the job
            except Exception as error:  # a full disk, a damaged file: what keeps one job from its end may pass
                log.error("a job's end could not be seen to yet", job=folder.path.name, error=str(error))
                await asyncio.sleep(pause)
            else:
                return

    async def _wait_unlocked(self, folder: JobFolder) -> None:
        """Wait until nobody watches over a job any more."""
        folder.lock.touch(0o600)  # there is one, unless somebody copied the folder without it
        with self._watcher.watch(folder.lock) as closed:
            while folder.is_locked():
                await closed.wait()
                closed.clear()
                # The kernel tells of a file's close just before it gives up the lock (__fput() in fs/file_table.c)
                # and of nothing after: hence a few short looks.
                for pause in _LOOKS_SECONDS:
                    if not folder.is_locked():
                        return
                    await asyncio.sleep(pause)

    def _enter_ended(self, folder: JobFolder) -> None:
        """Enter a job that has come to its end into the catalogue."""
        status = folder.read_status()
        if status is None or status.end is None:
            raise SpoolCorrupt(folder.status, "it has no end, though the log has")
        self._catalog.mark_ended(folder.read_spec(), status.end.ended_ns, disk_bytes(folder.path))
        self._job_ended.set()

    async def _scan(self) -> None:
        """Take up every job that is there, whoever started it."""
        try:
            for leftover in self._removed.iterdir():
                await asyncio.to_thread(shutil.rmtree, leftover)
            ended = {job.id for job in self._catalog.ended()}
            gone = set(ended)
            with os.scandir(self._jobs) as entries:
                for entry in entries:
                    gone.discard(entry.name)
                    if entry.name in ended or entry.name in self._spawning or not _is_job_id(entry.name):
                        continue
                    try:
                        await self._take_up(JobFolder(Path(entry.path)))
                    except Exception as error:  # one damaged folder must not keep the others from being taken up
                        log.error("a job's folder could not be taken up", job=entry.name, error=str(error))
                    await asyncio.sleep(0)
            for job_id in gone:
                self._catalog.remove(job_id)
            self._catalog.mark_complete()
        except (CatalogFailed, OSError) as error:  # whoever needs a complete catalogue has it scanned again
            log.error("the jobs could not be taken up", error=str(error))

    async def _take_up(self, folder: JobFolder) -> None:
        status = folder.read_status()
        if status is not None and status.state is JobState.ENDED and has_end(folder):
            self._enter_ended(folder)
        elif status is not None:
            self._catalog.add_found(folder.read_spec())
            self._guard(folder)
        elif folder.output.exists() and folder.output.stat().st_size:
            raise SpoolCorrupt(folder.status, "it is missing, though the job has printed something")
        elif (lock := folder.try_lock()) is not None:
            try:
                if not folder.is_too_new():  # of a newer format it may be whole as it is
                    await self._forget(folder)
            finally:
                os.close(lock)

    async def _retain(self) -> None:
        """Remove the jobs that are too old, or too much."""
        if not (self._storage.max_total_bytes or self._storage.max_age_seconds):
            return
        await asyncio.shield(self._scanning)
        while True:
            self._job_ended.clear()
            try:
                ended = self._catalog.ended()
                others = sum(disk_bytes(self._jobs / job_id) for job_id in self._catalog.unended())
                chosen = choose_removals(ended, others, self._storage, time.time_ns())
                for job_id in chosen:
                    with contextlib.suppress(FileNotFoundError):  # somebody else removed it
                        await self._remove(self._folder(job_id))
                wait = seconds_until_next(ended[len(chosen) :], self._storage, time.time_ns())
            except (CatalogFailed, OSError) as error:
                log.error("old jobs could not be removed", error=str(error))
                wait = _PAUSES_SECONDS[-1]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._job_ended.wait()

    async def _finish(self, *tasks: asyncio.Task[None]) -> None:
        if self._spawning:
            await asyncio.wait(self._spawning.values())
        for task in (*tasks, self._scanning, *self._guards.values()):
            task.cancel()


def _is_job_id(name: str) -> bool:
    try:
        return parse_job_id(name) == name
    except JobIdMalformed:
        return False


@contextlib.contextmanager
def _hold(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace") or "?"
        raise StateDirectoryInUse(directory, holder) from None
    else:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)
