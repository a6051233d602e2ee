"""The keeper: brings every job of a state directory to its end, whichever process started it.

One keeper holds a state directory, for any number of engines in any number of processes. It takes up the jobs that are
there when it starts and each that comes, waits until no process watches over a job, and then looks whether the job
has ended. It also knows when a drain is over: when new jobs are refused and none is left.

A drain is a file, `drain`, in the state directory: present, it is on. Each engine looks for it after it has put a new
job's folder in its place, and the keeper looks through all folders after it has seen the file. So a job that slips in
while the drain begins is refused by its engine or waited for by the keeper, and no process needs to be told. The keeper
writes into the file how many jobs are left, and removes it when it starts and when it ends.
"""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import asyncinotify
import structlog

from workerd.engine import identity, request_keys
from workerd.engine.errors import (
    CatalogBusy,
    CatalogFailed,
    FormatTooNew,
    JobIdMalformed,
    NeverForced,
    SpoolCorrupt,
    StateDirectoryGone,
)
from workerd.engine.files import private
from workerd.engine.folder import JobFolder
from workerd.engine.hold import holding, is_in_place
from workerd.engine.job import parse_job_id
from workerd.engine.journal import Journal
from workerd.engine.recovery import COPIED, VANISHED, check_lost, is_complete, recover
from workerd.engine.remains import KILL_SECONDS, MarkKiller, end_remains, find_remains
from workerd.engine.retention import Retention
from workerd.engine.sharing import find_shared, grantees_of
from workerd.engine.shelf import OnEnd, Shelf
from workerd.engine.storage import DEFAULT_STORAGE, Storage, check_file_system, disk_bytes
from workerd.engine.threads import Threads
from workerd.engine.watcher import open_inotify

log = structlog.get_logger()
_PAUSES_SECONDS = (1.0, 5.0, 30.0)
_TURN = 64
_GONE = asyncinotify.Mask.DELETE_SELF | asyncinotify.Mask.MOVE_SELF
_REMOVED = _GONE | asyncinotify.Mask.DELETE | asyncinotify.Mask.MOVED_FROM
_MAY_BE_GONE = _REMOVED | asyncinotify.Mask.UNMOUNT | asyncinotify.Mask.Q_OVERFLOW
T = TypeVar("T")


class Keeper:
    """Keeps the jobs below one state directory. An asynchronous context manager.

    Args:
        state_directory: made if it does not exist.
        storage: what is kept of jobs.
        on_end: told of each job that ends, also of those that ended while no keeper was there, and in any case before
            they are removed. At least once, and not again once it has returned, unless the machine goes down, or this
            process is killed just then. If it raises, it is told later.
        on_remove: told the id of each job that is removed because jobs are too old or too much. That goes on if it
            raises: what it lacks may be the room that this makes.
        max_ending: how many lost jobs are ended at once, which takes descriptors; zero for any number.

    Attributes:
        hold: the descriptor that holds the state directory. A process that inherits it keeps the next keeper waiting.

    Raises:
        StateDirectoryInUse: on entering, when another keeper holds it.
        StorageUnfit: on entering, when its file system cannot do what `storage` asks for.
    """

    hold: int

    def __init__(
        self,
        state_directory: Path,
        storage: Storage = DEFAULT_STORAGE,
        *,
        on_end: OnEnd | None = None,
        on_remove: Callable[[str], None] | None = None,
        max_ending: int = 0,
    ) -> None:
        self._shelf = Shelf(state_directory, on_end)
        self._turns = asyncio.Semaphore(max_ending or sys.maxsize)
        self._on_remove = on_remove
        self._drain = self._shelf.drain
        self._storage = storage
        self._guards: dict[str, asyncio.Task[None]] = {}
        self._reported: set[str] = set()  # the folders that cannot be recovered
        self._changed = asyncio.Event()
        self._gone = asyncio.Event()
        self._job_ended = asyncio.Event()
        self._rescanning: asyncio.Task[None] | None = None
        self._is_catalog_checked = False
        self._recovering = Threads("recovering a job", most=4, limit_seconds=None)
        self._killer = MarkKiller(most=1, limit_seconds=KILL_SECONDS)

    async def __aenter__(self) -> Self:
        directory = self._shelf.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as stack:
            self.hold = await stack.enter_async_context(holding(self._shelf.lock))
            if self._storage.max_log_bytes:
                check_file_system(directory)
            identity.establish(self._shelf.identity)
            request_keys.establish(self._shelf.keys_file, self._shelf.jobs)
            self._catalog = stack.enter_context(self._shelf).catalog
            with contextlib.suppress(CatalogFailed):  # the first scan does it again
                self._catalog.mark_incomplete()
            await self._shelf.sweep()
            self._drain.unlink(missing_ok=True)
            stack.callback(self._end_drain)
            news = stack.enter_context(open_inotify())
            news.add_watch(self._shelf.jobs, asyncinotify.Mask.MOVED_TO)
            news.add_watch(directory, _REMOVED | asyncinotify.Mask.CREATE)
            for above in directory.parents:
                with contextlib.suppress(OSError):  # it may not be read, or the kernel has no watch left
                    news.add_watch(above, _GONE)
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._scanning = self._tasks.create_task(self._scan(), name="scan")
            others = (self._shelf.watcher.run(), self._take_news(news), self._retain())
            running = [self._tasks.create_task(each) for each in others]
            stack.callback(self._finish, *running)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def wait_scanned(self) -> None:
        """Wait until every job that was there when the keeper started has been taken up."""
        await asyncio.shield(self._scanning)

    async def wait_drained(self) -> None:
        """Wait until a drain is asked for, and then until no job is left."""
        while True:
            while not self._drain.exists():
                await self._wait_changed()
            log.info("draining: no new jobs are taken")
            await self.wait_scanned()
            if not await self._try_scan():
                await self._rescan()
            while self._drain.exists():
                self._write_progress()
                if not self._guards:
                    return
                await self._wait_changed()
            log.info("the drain was called off")

    async def wait_gone(self) -> None:
        """Wait until the state directory, or its lock, is removed or moved away.

        Raises:
            StateDirectoryGone: always.
        """
        await self._gone.wait()
        raise StateDirectoryGone(self._shelf.directory)

    def _end_drain(self) -> None:
        if is_in_place(self.hold, self._shelf.lock):
            self._drain.unlink(missing_ok=True)

    async def _wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _write_progress(self) -> None:
        try:
            with open(self._drain, "r+b", buffering=0, opener=private) as file:
                file.write(b"%-20d\n" % len(self._guards))  # of one length: a concurrent reader finds a whole number
        except FileNotFoundError:
            pass  # the drain was called off
        except OSError as error:  # no room on the disk, say: it is for people, and the drain goes on
            log.warning("how far the drain is could not be written", jobs=len(self._guards), error=str(error))

    async def _take_news(self, news: asyncinotify.Inotify) -> None:
        async for event in news:
            if event.mask & _MAY_BE_GONE and not is_in_place(self.hold, self._shelf.lock):
                self._gone.set()
                return
            if asyncinotify.Mask.MOVED_TO in event.mask and _is_job_id(str(event.name)):
                self._guard(self._shelf.folder(str(event.name)))
            elif asyncinotify.Mask.Q_OVERFLOW in event.mask:  # the kernel could not keep up: anything may have come
                self._changed.set()
                await self._scan()
            elif str(event.name) == self._drain.name:
                self._changed.set()
            elif str(event.name) == self._shelf.catalog_file.name:  # it was deleted
                await self._scan()

    def _guard(self, folder: JobFolder) -> None:
        """Start a guard that ends a job whose supervisor vanishes, unless it has one."""
        name = folder.path.name
        if name not in self._guards:
            self._guards[name] = self._tasks.create_task(self._see_to_its_end(folder), name=f"guard {name}")

    async def _see_to_its_end(self, folder: JobFolder) -> None:
        try:
            for pause in itertools.chain(_PAUSES_SECONDS, itertools.repeat(_PAUSES_SECONDS[-1])):
                try:
                    await self._end_or_leave(folder)
                except FileNotFoundError:  # the job was removed
                    if not folder.path.exists():
                        return
                    # And its key has made it again: it is this guard's.
                except Exception as error:  # a full disk, say: what keeps one job from its end may pass
                    log.error("a job's end could not be seen to yet", job=folder.path.name, error=str(error))
                    await asyncio.sleep(pause)
                else:
                    return
        finally:
            # Here and not in a callback: a folder of the same name that comes right now gets a guard of its own.
            del self._guards[folder.path.name]
            self._changed.set()

    async def _end_or_leave(self, folder: JobFolder) -> None:
        try:
            await self._end(folder)
        except SpoolCorrupt as error:
            self._leave(folder, error)

    async def _end(self, folder: JobFolder) -> None:
        """Wait until no process watches over a job, and bring it to its end.

        Raises:
            FileNotFoundError: it was removed.
            SpoolCorrupt: it is damaged, and no process watches over it.
        """
        is_ended = False
        while not is_ended:
            await self._shelf.wait_unlocked(folder)
            if self._read_whole(folder) is not None:  # done at once, so it waits for no lost job
                is_ended = await self._end_unwatched(folder)
            else:
                async with self._turns:  # not before: a job that waits for its turn has nothing open
                    is_ended = await self._end_unwatched(folder)

    async def _end_unwatched(self, folder: JobFolder) -> bool:
        """End a job that no supervisor watches over; return False if another process has locked it."""
        if (lock := folder.try_lock()) is None:
            return False
        try:
            journal = self._read_whole(folder) or await self._recover(folder, lock)
            if journal is None:
                return True
            self._shelf.tell_end(folder, lock, journal)
        finally:
            os.close(lock)
        self._enter_ended(folder, journal)
        return True

    def _read_whole(self, folder: JobFolder) -> Journal | None:
        """Return the journal of a job whose supervisor has come to the end, and whose log has all that it said."""
        with contextlib.suppress(NeverForced):
            journal = folder.read()
            if journal.ended and is_complete(folder, journal):
                return journal
        return None

    async def _recover(self, folder: JobFolder, lock: int) -> Journal | None:
        """Bring what a supervisor left to an end; return None if nothing had been executed."""
        if await self._shelf.clear(folder):
            return None
        spool, why = self._shelf.spool, VANISHED
        # In threads: a long journal, or a long log, takes its time to be read.
        if (journal := await self._recovering.run(check_lost, folder)) is not None:
            if (remains := await find_remains(folder, journal, spool)) is not None:
                await end_remains(remains, self._shelf.watcher, self._killer)
            if journal.spool not in ("", spool):
                why = COPIED
        if await self._recovering.run(recover, folder, lock, why):
            log.warning("a job was lost: its supervisor vanished", job=folder.path.name)
        return folder.read()

    def _enter_ended(self, folder: JobFolder, journal: Journal) -> None:
        """Enter a job that has come to its end into the catalogue."""
        spec, end = journal.spec_and_end(folder.path)
        if journal.faults:
            problem = "".join(journal.faults)
            log.warning("a job's supervisor reported a problem", job=folder.path.name, problem=problem)
        if end.log_ended_early:
            log.warning("a job's log ended before the job", job=folder.path.name, reason=end.log_ended_early)
        self._catalog.mark_ended(spec, end.ended_ns, disk_bytes(folder.path))
        if os.path.exists(folder.shares):  # the catalogue may have been too busy at the job's start
            with contextlib.suppress(SpoolCorrupt):
                self._catalog.add_shares(spec.id, grantees_of(folder.read_shares()))
        self._job_ended.set()

    async def _scan(self) -> None:
        """Take up every job that is there; again later, if that fails."""
        if not await self._try_scan() and (self._rescanning is None or self._rescanning.done()):
            self._rescanning = self._tasks.create_task(self._rescan(), name="rescan")

    async def _rescan(self) -> None:
        """Scan again, after a pause, until it succeeds."""
        scanned = False
        while not scanned:
            await asyncio.sleep(_PAUSES_SECONDS[-1])
            scanned = await self._try_scan()

    async def _try_scan(self) -> bool:
        """Take up every job that is there; return whether that could be done."""
        try:
            await self._check_catalog()
            generation = self._catalog.generation
            ended = {job.id async for job in _in_turns(self._catalog.ended())}
            gone = ended.union(self._catalog.unended())
            with os.scandir(self._shelf.jobs) as entries:
                async for entry in _in_turns(entries):
                    gone.discard(entry.name)
                    if entry.name in ended or not _is_job_id(entry.name):
                        continue
                    try:
                        await self._take_up(JobFolder(Path(entry.path)))
                    except CatalogBusy:
                        raise  # each of the others would wait as long
                    except Exception as error:  # one damaged folder must not keep the others from being taken up
                        log.error("a job's folder could not be taken up", job=entry.name, error=str(error))
                    await asyncio.sleep(0)
            async for job_id in _in_turns(gone):
                if not self._shelf.folder(job_id).path.exists():  # its key may have started it again since
                    self._catalog.remove(job_id)
            await self._enter_shares()
            self._catalog.mark_complete(generation)
        except (CatalogFailed, OSError) as error:
            log.error("the jobs could not be taken up yet", error=str(error))
            return False
        return True

    async def _enter_shares(self) -> None:
        """Enter whom jobs are shared with, which a catalogue may lack after a power cut."""
        for job_id, grantees in await self._recovering.run(find_shared, self._shelf.jobs):
            self._catalog.add_shares(job_id, grantees)
            await asyncio.sleep(0)

    async def _check_catalog(self) -> None:
        """Check the catalogue as the keeper found it: a power cut may have damaged it, or taken its last rows."""
        if not self._is_catalog_checked:
            self._catalog.mark_incomplete()
            if (problem := await self._recovering.run(self._catalog.find_damage)) is not None:
                self._catalog.reset(problem)
            self._is_catalog_checked = True

    async def _take_up(self, folder: JobFolder) -> None:
        try:
            journal = folder.read()
            if journal.ended and is_complete(folder, journal) and self._shelf.try_tell_end(folder, journal):
                self._enter_ended(folder, journal)
                return
        except NeverForced:
            journal = Journal()
        except SpoolCorrupt as error:
            if not folder.is_watched():
                with contextlib.suppress(CatalogFailed):  # the guard tries again
                    self._leave(folder, error)
                    return
            journal = Journal()
        self._guard(folder)
        if journal.spec is not None and journal.status is not None:
            self._catalog.add_found(journal.spec)

    async def _retain(self) -> None:
        """Remove the jobs that are too old, or too much."""
        if not (self._storage.max_total_bytes or self._storage.max_age_seconds):
            return
        await asyncio.shield(self._scanning)
        await Retention(self._shelf, self._storage, self._remove).run(self._job_ended)

    async def _remove(self, folder: JobFolder) -> None:
        told = self._tell_removal(folder.path.name)
        try:
            await self._shelf.remove(folder)
        except FileNotFoundError:
            pass  # another process removed it
        except FormatTooNew:
            raise
        except SpoolCorrupt:
            if folder.is_watched():
                raise
            await self._shelf.remove_damaged(folder)
        else:
            if not told and not self._tell_removal(folder.path.name):
                log.error("nobody could be told of a job's removal", job=folder.path.name)

    def _tell_removal(self, job_id: str) -> bool:
        try:
            if self._on_remove is not None:
                self._on_remove(job_id)
        except Exception as error:  # on a full disk; the removal makes room
            log.warning("a job's removal could not be told yet", job=job_id, error=str(error))
            return False
        return True

    def _leave(self, folder: JobFolder, error: SpoolCorrupt) -> None:
        """Leave a damaged folder as it is, enter it so that it is listed and removed, and report it once."""
        if folder.path.name not in self._reported:
            self._reported.add(folder.path.name)
            log.error("a job's folder is left as it is", job=folder.path.name, error=str(error))
        if not isinstance(error, FormatTooNew):
            owner = folder.read_owner()
            changed_ns = folder.path.stat().st_mtime_ns
            self._catalog.mark_damaged(
                folder.path.name, "" if owner is None else owner.id, changed_ns, disk_bytes(folder.path)
            )
            self._job_ended.set()

    def _finish(self, *tasks: asyncio.Task[None]) -> None:
        for task in (*tasks, self._scanning, *self._guards.values()):
            task.cancel()
        if self._rescanning is not None:
            self._rescanning.cancel()


async def _in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Iterate over very many items, and let other tasks have a turn now and then."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % _TURN == 0:
            await asyncio.sleep(0)


def _is_job_id(name: str) -> bool:
    try:
        return parse_job_id(name) == name
    except JobIdMalformed:
        return False
