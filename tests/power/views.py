"""What a reader sees of jobs, through an engine in this process or through a client of a daemon: the same for both."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog.testing
from worker_api.worker.v1 import ErrorReason
from worker_api.worker.v1 import Gap as GapMessage
from worker_api.worker.v1 import JobEnd as EndMessage
from worker_api.worker.v1 import JobState as StateMessage
from worker_api.worker.v1 import Stream as StreamMessage

from tests.daemon import Daemon
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.events import Output as OutputMessage
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import JobNotFound, SpoolCorrupt
from workerd.engine.job import Cause, DamagedJob, Exited, JobEnd, Killed, Lost, Stopped, Stream, TimedOut
from workerd.engine.reader import Gap, Output

READ_SECONDS = 20.0


class Missing(Exception):
    """There is no such job."""


class Unreadable(Exception):
    """The job is damaged."""


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended: the cause in words, and the size and digest of each stream."""

    cause: str
    stdout: tuple[int, str]
    stderr: tuple[int, str]

    @property
    def lost(self) -> bool:
        return self.cause == "lost"

    @property
    def size(self) -> int:
        return self.stdout[0] + self.stderr[0]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one stream, as they were served."""

    offset: int
    stream: int
    stream_offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Hole:
    """A range of the log that cannot be read."""

    start: int
    end: int


@dataclass(slots=True)
class Log:
    """What one read of a log gave."""

    events: list[Piece | Hole] = field(default_factory=list)
    end: End | None = None


class View(Protocol):
    """Looks at the jobs of a state directory."""

    async def listed(self) -> dict[str, bool]:
        """Return all jobs in the list, and of each whether it is told to be damaged."""

    async def read(self, job_id: str, offset: int = 0) -> Log:
        """Read a job's log to its end.

        Raises:
            Missing, Unreadable: it cannot be read.
            TimeoutError: the end does not come.
        """

    async def shared_with(self, job_id: str) -> set[str]:
        """Return the ids of the users that a job is shared with."""


class EngineView:
    """Looks through an engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def listed(self) -> dict[str, bool]:
        jobs: dict[str, bool] = {}
        after = None
        while True:
            page = await self._engine.list_jobs(None, states=(), name="", size=1000, after=after)
            jobs |= {row.id: isinstance(row, DamagedJob) for row in page.rows}
            after = page.next
            if after is None:
                return jobs

    async def read(self, job_id: str, offset: int = 0) -> Log:
        log = Log()
        try:
            batches = self._engine.read_log(job_id, Start(offset=offset), frozenset(Stream), follow=True)
            async with asyncio.timeout(READ_SECONDS), contextlib.aclosing(batches):
                async for batch in batches:
                    for event in batch:
                        match event:
                            case Output():
                                log.events.append(Piece(event.offset, event.stream, event.stream_offset, event.data))
                            case Gap():
                                log.events.append(Hole(event.start, event.end))
                            case JobEnd():
                                log.end = _engine_end(event)
        except JobNotFound:
            raise Missing from None
        except SpoolCorrupt as error:
            raise Unreadable(str(error)) from error
        return log

    async def shared_with(self, job_id: str) -> set[str]:
        return {share.user.id for share in self._engine.shares(job_id)}


class ClientView:
    """Looks through a client of a daemon."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def listed(self) -> dict[str, bool]:
        return {job.id: job.state is StateMessage.DAMAGED async for job in self._client.list_jobs()}

    async def read(self, job_id: str, offset: int = 0) -> Log:
        log = Log()
        try:
            events = self._client.stream_log(job_id, offset=offset)
            async with asyncio.timeout(READ_SECONDS), contextlib.aclosing(events):
                async for event in events:
                    match event:
                        case OutputMessage():
                            stream = 1 if event.stream is StreamMessage.STDOUT else 2
                            piece = Piece(event.offset_bytes, stream, event.stream_offset_bytes, event.data)
                            log.events.append(piece)
                        case GapMessage():
                            log.events.append(Hole(event.from_offset_bytes, event.to_offset_bytes))
                        case EndMessage():
                            log.end = told_end(event)
        except CallFailed as error:
            if error.reason is ErrorReason.JOB_NOT_FOUND:
                raise Missing from None
            if error.reason is ErrorReason.JOB_UNREADABLE:
                raise Unreadable(str(error)) from error
            raise
        return log

    async def shared_with(self, job_id: str) -> set[str]:
        return {share.user.id for share in await self._client.share(job_id) if share.user is not None}


@contextlib.asynccontextmanager
async def view_by_engine(state: Path) -> AsyncIterator[View]:
    """Look at a state directory through an engine of its own, quietly."""
    with structlog.testing.capture_logs():
        async with Engine(state) as engine:
            await engine.wait_scanned()
            yield EngineView(engine)


@contextlib.asynccontextmanager
async def view_by_daemon(state: Path) -> AsyncIterator[View]:
    """Look at a state directory through a daemon of its own."""
    daemon = Daemon(state)
    await asyncio.to_thread(daemon.start)
    try:
        async with daemon.client() as client:
            yield ClientView(client)
    finally:
        await asyncio.to_thread(daemon.stop)


def told_end(end: EndMessage) -> End:
    """Convert an end as a client is told it."""
    sums = {summary.stream: (summary.size_bytes, summary.xxh3_128.hex()) for summary in end.streams}
    if end.exited is not None:
        cause = f"exited {end.exited.code}"
    elif end.killed is not None:
        cause = f"killed {end.killed.signal}"
    elif end.stopped is not None:
        cause = f"stopped {end.stopped.signal}"
    elif end.timed_out is not None:
        cause = f"timed out {end.timed_out.signal}"
    else:
        cause = "lost"
    return End(cause, sums[StreamMessage.STDOUT], sums[StreamMessage.STDERR])


def _engine_end(end: JobEnd) -> End:
    stdout, stderr = end.stdout, end.stderr
    return End(_cause(end.cause), (stdout.size_bytes, stdout.xxh3_128), (stderr.size_bytes, stderr.xxh3_128))


def _cause(cause: Cause) -> str:
    match cause:
        case Exited():
            return f"exited {cause.code}"
        case Killed():
            return f"killed {cause.signal}"
        case Stopped():
            return f"stopped {cause.signal}"
        case TimedOut():
            return f"timed out {cause.signal}"
        case Lost():
            return "lost"
