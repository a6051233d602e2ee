"""Folders of jobs in tests, written as a supervisor writes them, without one."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.engine.logs import shell
from workerd.engine import identity
from workerd.engine.folder import JobFolder
from workerd.engine.job import Exited, JobEnd, JobState, JobStatus, Stream
from workerd.engine.journal import Ended, Entry, JournalWriter, Stated, Supervised
from workerd.engine.recovery import check_lost, recover
from workerd.engine.remains import MarkKiller, end_remains, find_remains
from workerd.engine.spool import SpoolWriter
from workerd.engine.storage import DEFAULT_STORAGE
from workerd.engine.watcher import Watcher

JOB_ID = "00000000-0000-4000-8000-000000000000"
_NO_PID = 2**22  # one more than the largest (proc_sys_kernel(5), pid_max)
Writes = Sequence[tuple[Stream, bytes]]


@dataclass
class Written:
    """A job's folder, and how far its files had been forced to the disk when it was left.

    Attributes:
        lock: the descriptor that holds its lock.
        spool: the id of its state directory.
        synced: how many bytes of each file are on the disk for certain, by the file's name.
    """

    folder: JobFolder
    lock: int
    spool: str
    journal: JournalWriter
    log: SpoolWriter
    synced: dict[str, int]

    def append(self, *entries: Entry) -> None:
        for entry in entries:
            self.journal.append(entry)

    def sync(self, *names: str) -> None:
        """Note that files are on the disk as they stand."""
        self.synced |= {name: (self.folder.path / name).stat().st_size for name in names}

    def end(self, *, in_tail: bool) -> JobEnd:
        """End the job as a supervisor does, up to what it waits for; return the end that it has told then."""
        tail = self.log.tail() if in_tail else None
        if tail is None:
            self.log.sync()
            self.sync("output", "index")
        end = JobEnd(
            cause=Exited(3),
            started_ns=5,
            ended_ns=6,
            user_cpu_seconds=0.0,
            system_cpu_seconds=0.0,
            peak_memory_bytes=0,
            stdout=self.log.summary(Stream.STDOUT),
            stderr=self.log.summary(Stream.STDERR),
        )
        self.append(Ended(JobStatus(state=JobState.ENDED, started_ns=5, end=end), tail))
        return end

    def recover(self) -> bool:
        return end_and_recover(self.folder, self.lock, self.spool)

    def close(self) -> None:
        os.close(self.lock)
        self.log.close()


def end_and_recover(folder: JobFolder, lock: int, spool: str) -> bool:
    """Do what a keeper does for a job that no supervisor watches over."""
    journal = check_lost(folder)
    if journal is not None and journal.supervisor is not None and journal.supervisor.boot == identity.boot_id():

        async def end() -> None:
            if (remains := await find_remains(folder, journal, spool)) is None:
                return
            with Watcher() as watcher:
                running = asyncio.create_task(watcher.run())
                await end_remains(remains, watcher, MarkKiller(most=1, limit_seconds=30))
                running.cancel()

        asyncio.run(end())
    return recover(folder, lock)


def write_running(
    state: Path,
    writes: Writes = (),
    limit_bytes: int = 0,
    *,
    boot: str = "an earlier boot",
    supervisor: int = _NO_PID,
    start_ticks: int = 1,
) -> Written:
    """Write the folder of a job that runs and has printed something; its spec is on the disk, and the log is not."""
    (state / "jobs").mkdir(parents=True, exist_ok=True)
    spool = identity.establish(state / "spool")
    folder = JobFolder(state / "jobs" / JOB_ID)
    lock = folder.create(shell("true").specify(JOB_ID, 1, DEFAULT_STORAGE), spool, state / "spool")
    journal = JournalWriter(lock, JOB_ID, folder.journal.stat().st_size)
    written = Written(
        folder, lock, spool, journal, SpoolWriter(folder, limit_bytes), dict.fromkeys(("output", "index"), 0)
    )
    written.append(Supervised(supervisor, start_ticks, boot, ""))
    written.append(Stated(JobStatus(state=JobState.RUNNING, pid=supervisor, started_ns=5)))
    written.sync("journal")
    for stream, data in writes:
        written.log.append(stream, memoryview(data))
    return written
