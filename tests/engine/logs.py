"""Reading whole logs in tests."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import PROGRAMS
from workerd.engine.engine import Engine, Start
from workerd.engine.folder import JobFolder
from workerd.engine.job import JobEnd, Stream, User
from workerd.engine.reader import Gap, LogReader, Output
from workerd.engine.request import SpawnRequest

ME = User("11111111-1111-4111-8111-111111111111", "acrimon")


@dataclass
class Log:
    """What one reader got."""

    events: list[Output | Gap] = field(default_factory=list)
    end: JobEnd | None = None

    def data(self, stream: Stream) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, Output) and event.stream is stream)

    @property
    def stdout(self) -> bytes:
        return self.data(Stream.STDOUT)

    @property
    def stderr(self) -> bytes:
        return self.data(Stream.STDERR)


async def log_events(
    engine: Engine,
    job_id: str,
    start: Start | None = None,
    streams: Collection[Stream] = frozenset(Stream),
    *,
    follow: bool = True,
) -> AsyncGenerator[Output | Gap | JobEnd, None]:
    """Read a log event by event."""
    log = engine.read_log(job_id, start or Start(), streams, follow=follow)
    async with contextlib.aclosing(log) as batches:
        async for events in batches:
            assert events
            for event in events:
                yield event


async def read_log(
    engine: Engine, job_id: str, start: Start | None = None, streams: frozenset[Stream] = frozenset(Stream)
) -> Log:
    """Read a log to its end; an event after the end is an error."""
    log = Log()
    async for event in log_events(engine, job_id, start, streams):
        assert log.end is None, "an event came after the end"
        if isinstance(event, JobEnd):
            log.end = event
        else:
            log.events.append(event)
    assert log.end is not None, "the log stopped before its end"
    return log


async def wait_for_output(engine: Engine, job_id: str, text: bytes) -> bytes:
    """Wait until a job has printed something on its standard output; return all that it has printed by then."""
    printed = b""
    async for event in log_events(engine, job_id, streams={Stream.STDOUT}):
        assert isinstance(event, Output), f"the job ended before it printed {text!r}: {event}"
        printed += event.data
        if text in printed:
            return printed
    raise AssertionError("the log stopped")


def shell(script: str, **fields: object) -> SpawnRequest:
    """Ask for a shell script."""
    return SpawnRequest(owner=ME, program="/bin/sh", args=("-c", script), **fields)  # type: ignore[arg-type]


def program(name: str, *arguments: str, **fields: object) -> SpawnRequest:
    """Ask for one of the programs in tests/programs."""
    path = str(PROGRAMS / f"{name}.py")
    return SpawnRequest(owner=ME, program=sys.executable, args=(path, *arguments), **fields)  # type: ignore[arg-type]


async def run(engine: Engine, request: SpawnRequest) -> Log:
    """Run a job to its end."""
    return await asyncio.wait_for(read_log(engine, await engine.spawn(request)), 60)


def read_whole_log(folder: JobFolder, offset: int = 0) -> list[tuple[Stream, bytes]]:
    """Read a complete log from an offset on, without an engine."""
    events: list[tuple[Stream, bytes]] = []
    with LogReader(folder) as reader:
        reader.seek(offset)
        while not reader.complete:
            before = reader.position
            read = reader.read()
            for event in read:
                assert isinstance(event, Output), event
                events.append((event.stream, event.data))
            assert read or reader.position > before or reader.complete, "the log has no end"
    return events


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, reaped or not yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
