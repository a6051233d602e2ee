"""The shelf: where the folders of all jobs stand, for all processes that work on them.

A job's folder comes and goes as a whole, so that of all processes that would start one job, one does. It is made aside,
with its lock held and what was asked for written, and then renamed to its place, which fails when the job has a folder
already (rename(2)). It is taken away by being renamed again. So no process ever sees a job's folder without its lock.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from system.file_lock import try_to_lock
from workerd.engine import identity, request_keys
from workerd.engine.catalog import Catalog
from workerd.engine.errors import CatalogFailed, JournalDamaged, NeverForced, NoAnswer, SpoolCorrupt
from workerd.engine.folder import HELD_SECONDS, JobFolder
from workerd.engine.job import JobEnd, JobSpec
from workerd.engine.journal import Journal
from workerd.engine.recovery import has_end, has_output
from workerd.engine.request_keys import RequestKeys
from workerd.engine.threads import Threads
from workerd.engine.watcher import CLOSED, REPLACED, Watcher

log = structlog.get_logger()
_LOOKS_SECONDS = (0.001, 0.01, 0.1, 1.0)
_SCAN_SECONDS = 60.0
_HELD_SECONDS = 3.0
_REMOVE_SECONDS = 30.0
OnEnd = Callable[[JobSpec, JobEnd], None]
"""Told of a job that has ended; what it raises puts that off."""


class Shelf:
    """The jobs below one state directory, which is made if it does not exist. A context manager.

    Args:
        on_end: told of each job's end, before the job counts as ended in the catalogue, and before it is removed.

    Attributes:
        jobs: the directory of the jobs' folders.
        drain: the file that is there while no new jobs are taken (`workerd.engine.keeper`).
        lock: the file that the keeper holds, with its process's id.
        catalog_file: where the catalogue is.
        identity: the file with the state directory's id (`workerd.engine.identity`), which its keeper makes.
        spool: that id, once entered.
        keys_file: the file with the secret of the request keys (`workerd.engine.request_keys`), which its keeper makes.
        keys: the ids that request keys lead to, once entered.
        catalog: the catalogue of the jobs, once entered.
        watcher: tells when something about a job changes, once entered, while its `run` runs.
        replacements: the same, but only of files that are replaced, and of folders that go.
    """

    catalog: Catalog
    spool: str
    keys: RequestKeys
    watcher: Watcher
    replacements: Watcher

    def __init__(self, state_directory: Path, on_end: OnEnd | None = None) -> None:
        self._on_end = on_end
        self.directory = state_directory
        self.jobs = state_directory / "jobs"
        self.drain = state_directory / "drain"
        self.lock = state_directory / "lock"
        self.catalog_file = state_directory / "catalog.sqlite"
        self.identity = state_directory / "spool"
        self.keys_file = state_directory / request_keys.FILE_NAME
        self._labels = state_directory / "labels"
        self._drafts = state_directory / "drafts"
        self._removed = state_directory / "removed"
        self._removing = Threads("removing a job's files", most=4, limit_seconds=_REMOVE_SECONDS)

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.jobs, self._drafts, self._removed):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.spool = identity.read(self.identity)
        self.keys = request_keys.read(self.keys_file)
        with contextlib.ExitStack() as stack:
            self.catalog = stack.enter_context(Catalog(self.catalog_file))
            self.watcher = stack.enter_context(Watcher())
            self.replacements = stack.enter_context(Watcher(REPLACED))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    async def wait_complete(self) -> None:
        """Wait until the keeper has entered every job into the catalogue.

        Raises:
            CatalogFailed: that takes too long.
        """
        if self.catalog.is_complete():
            return
        with self.watcher.watch(self.directory) as changed:  # the keeper makes the catalogue again
            try:
                async with asyncio.timeout(_SCAN_SECONDS):
                    while not self.catalog.is_complete():
                        await changed.wait()
                        changed.clear()
            except TimeoutError:
                problem = "it could not be made again from the jobs' folders"
                raise CatalogFailed(self.catalog_file, problem) from None

    def folder(self, job_id: str) -> JobFolder:
        """Return a job's folder, which need not exist."""
        return JobFolder(self.jobs / job_id)

    def claim(self, spec: JobSpec) -> int | None:
        """Make a job's folder, if it has none.

        Returns:
            A descriptor that holds the job's lock, as `JobFolder.create` returns it; None when it has a folder already.
        """
        place = self.jobs / spec.id
        if place.exists():
            return None
        draft = JobFolder(self._drafts / uuid.uuid4().hex, spec.id)
        lock: int | None = None
        try:
            lock = draft.create(spec, self.spool, identity.label(self._labels, spec.owner))
            os.rename(draft.path, place)
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            shutil.rmtree(draft.path, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            raise
        return lock

    async def forget(self, folder: JobFolder) -> None:
        """Remove a job, atomically for readers. No other process may lock or remove its folder at that time."""
        await self._delete(self._take_away(folder))

    async def clear(self, folder: JobFolder) -> bool:
        """Remove what is left of a spawn that ended before anything was executed; return whether it was that.

        The caller holds the job's lock.

        Raises:
            SpoolCorrupt: the folder is damaged.
        """
        try:
            journal = folder.read()
        except NeverForced:
            if has_end(folder) or has_output(folder):
                raise
        else:
            if journal.status is not None:
                return False
            if journal.is_broken or has_end(folder):
                raise JournalDamaged(folder.journal, journal.size)
            if has_output(folder):
                return False
        await self.forget(folder)
        return True

    async def remove(self, folder: JobFolder, created_ns: int | None = None) -> None:
        """Remove a job that has ended.

        Args:
            created_ns: the time of the job that is meant, if another that was made since is not.

        Raises:
            FileNotFoundError: it is not there, or another process removed it first.
            SpoolCorrupt: it is damaged.
            Exception: whatever `on_end` raises; it is not removed then.
        """
        with self._closing(await self.wait_lock(folder)) as lock:
            if created_ns not in (None, folder.read_spec().created_ns):
                raise FileNotFoundError(errno.ENOENT, "was removed and made again", str(folder.path))
            journal = folder.read()
            if not journal.ended:
                raise SpoolCorrupt(folder.journal, "it says nothing of an end")
            self.tell_end(folder, lock, journal)
            async with self._held(folder):
                removed = self._take_away(folder)
        await self._delete(removed)
        log.info("a job was removed", job=folder.path.name)

    async def remove_damaged(self, folder: JobFolder) -> None:
        """Remove a job whose files are damaged, and that no supervisor watches over. `on_end` is not called.

        Raises:
            FileNotFoundError: it is not there.
        """
        with self._closing(_lock_damaged(folder)):
            async with self._held(folder):
                removed = self._take_away(folder)
        await self._delete(removed)
        log.warning("a damaged job was removed", job=folder.path.name)

    @staticmethod
    @contextlib.asynccontextmanager
    async def _held(folder: JobFolder) -> AsyncIterator[None]:
        """Hold a folder as `JobFolder.wait_held` does, for the holder of its lock, without blocking the thread.

        Raises:
            LockHeld: another process holds it for too long.
        """
        descriptor = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for pause_seconds in try_to_lock(descriptor, folder.path, HELD_SECONDS):
                await asyncio.sleep(pause_seconds)
            yield
        finally:
            os.close(descriptor)

    def _take_away(self, folder: JobFolder) -> Path:
        try:  # first: as soon as the folder is away, a new one may take its place, and enter the job again
            self.catalog.remove(folder.path.name)
        except CatalogFailed as error:  # the next scan takes it out
            log.error("a removed job could not be taken out of the catalogue", job=folder.path.name, error=str(error))
        removed = self._removed / uuid.uuid4().hex
        folder.path.rename(removed)
        return removed

    async def _delete(self, removed: Path) -> None:
        try:
            await self._removing.run(shutil.rmtree, removed)
        except (NoAnswer, OSError, RuntimeError) as error:  # RuntimeError: no thread; the next start sweeps it away
            log.error("the files of a removed job are still there", folder=str(removed), error=str(error))

    def tell_end(self, folder: JobFolder, lock: int, journal: Journal) -> None:
        """Report the end of a job that has ended, unless that has been done.

        Args:
            lock: holds the job's lock, or two would tell of it.
            journal: the job's.

        Raises:
            Exception: whatever `on_end` raises.
        """
        if self._on_end is None or journal.is_told:
            return
        spec, end = journal.spec_and_end(folder.path)
        with folder.telling(lock, journal):
            self._on_end(spec, end)

    def try_tell_end(self, folder: JobFolder, journal: Journal) -> bool:
        """Report the end of a job as `tell_end` does, unless its lock is taken; return whether that is done."""
        if self._on_end is None or journal.is_told:
            return True
        with contextlib.suppress(Exception):  # the guard that waits for it meets the same error and logs it
            if (lock := folder.try_lock()) is not None:
                with self._closing(lock):
                    self.tell_end(folder, lock, folder.read())
                return True
        return False

    async def wait_lock(self, folder: JobFolder) -> int:
        """Take the lock of a job as soon as it is free; return it as `JobFolder.try_lock` does."""
        while True:
            await self.wait_unlocked(folder)
            if (lock := folder.try_lock()) is not None:
                return lock

    @staticmethod
    @contextlib.contextmanager
    def _closing(lock: int | None) -> Iterator[int]:
        try:
            yield -1 if lock is None else lock
        finally:
            if lock is not None:
                os.close(lock)

    async def sweep(self) -> None:
        """Remove the rest of what was on its way when its process was killed. No engine may be at work."""
        for directory in (self._drafts, self._removed):
            for leftover in directory.iterdir():
                await self._delete(leftover)

    async def wait_unlocked(self, folder: JobFolder) -> None:
        """Wait until no process watches over a job.

        Raises:
            FileNotFoundError: the job was removed.
            SpoolCorrupt: there is nothing that could be locked.
        """
        if folder.is_old:
            folder.lock.touch(0o600)  # there is one, unless the folder was copied without it
        with contextlib.ExitStack() as stack:
            with folder.requiring_files():
                closed = stack.enter_context(self.watcher.watch(folder.lock, mask=CLOSED))
            while True:
                closed.clear()
                # The kernel tells of a file's close just before it gives up the lock (__fput() in fs/file_table.c), and
                # of nothing after. Nor does it tell when a process lets go that only looked. Hence a few short looks.
                for pause in (0.0, *_LOOKS_SECONDS):
                    await asyncio.sleep(pause)
                    if closed.is_gone:  # the path may now belong to another job
                        raise FileNotFoundError(errno.ENOENT, "was removed", str(folder.path))
                    if not folder.is_locked():
                        return
                # Who holds it and is no supervisor may let go of it without being told of.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if folder.has_supervisor() else _HELD_SECONDS):
                        await closed.wait()


def _lock_damaged(folder: JobFolder) -> int | None:
    """Take the lock of a job, if it is free and there is anything that can be locked."""
    try:
        return folder.try_lock()
    except SpoolCorrupt:
        return None
