"""Jobs that run while the files of their folders are damaged, and end afterwards."""

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import xxhash

from tests.damage.engine_face import EngineFace
from tests.damage.faces import Piece
from tests.damage.jobs import Script
from tests.damage.plan import RUNNING
from tests.damage.scene import parent_of
from tests.damage.truth import KnownLog, Truth
from tests.engine.logs import has_ended
from tests.waiting import eventually
from workerd.engine.job import Exited, Job, JobEnd, JobState, Stream, User

_CODE = 7
_FINISH_SECONDS = 10.0
_LAST = b"the last words\n" * 100


@dataclass(frozen=True, eq=False)
class _KnownEnd:
    """Equal to an end with the right cause and the right summaries; nobody knows the times beforehand."""

    sizes: tuple[int, int]
    digests: tuple[str, str]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, JobEnd) or other.cause != Exited(_CODE):
            return False
        sizes = (other.stdout.size_bytes, other.stderr.size_bytes)
        return (self.sizes, self.digests) == (sizes, (other.stdout.xxh3_128, other.stderr.xxh3_128))

    def __hash__(self) -> int:
        return hash(self.digests)


@dataclass(frozen=True, eq=False)
class _KnownJob:
    """Equal to a job that has ended as it should, and is what it was otherwise."""

    before: Job
    end: Any

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Job)
            and other.spec == self.before.spec
            and other.status.state is JobState.ENDED
            and self.end == other.status.end
            and (other.stdout_bytes, other.stderr_bytes) == self.end.sizes
        )

    def __hash__(self) -> int:
        return hash(self.before.id)


@dataclass(frozen=True, eq=False)
class _EarlierJob:
    """Equal to a running job with as much output as it had, or less."""

    latest: Job

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Job)
            and (other.spec, other.status) == (self.latest.spec, self.latest.status)
            and other.stdout_bytes <= self.latest.stdout_bytes
            and other.stderr_bytes <= self.latest.stderr_bytes
        )

    def __hash__(self) -> int:
        return hash(self.latest.id)


@dataclass(slots=True)
class RunningJob:
    """One running job, with what is true now and what will be true when it has ended."""

    now: Truth
    later: Truth
    gate: Path
    supervisor: int

    async def finish(self) -> bool:
        """Let the job end and wait until its supervisor has gone; return whether it went by itself."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_SECONDS):
                while not self._opened():
                    await asyncio.sleep(0.02)  # nothing tells when a FIFO gets its reader (fifo(7))
                await eventually(self._has_gone)
                return True
        return False

    def _opened(self) -> bool:
        try:
            os.close(os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return has_ended(self.supervisor)
        return True

    async def _has_gone(self) -> bool:
        return has_ended(self.supervisor)


@asynccontextmanager
async def running_jobs(face: EngineFace, owner: User, folder: Path) -> AsyncIterator[dict[str, RunningJob]]:
    """Start the jobs, and kill at the end whatever is left of them."""
    jobs: dict[str, RunningJob] = {}
    try:
        for label in RUNNING:
            jobs[label] = await _start(face, label, owner, folder)
        yield jobs
    finally:
        for job in jobs.values():
            if not has_ended(job.supervisor):
                os.kill(job.supervisor, signal.SIGKILL)


async def _start(face: EngineFace, label: str, owner: User, folder: Path) -> RunningJob:
    gate = folder / f"{label}.gate"
    os.mkfifo(gate)
    random = Random(label)
    first = tuple((1 + number % 2, random.randbytes(random.randint(1, 3000))) for number in range(40))
    waiting = (0, os.fsencode(gate))
    command = Script(label, (*first, waiting, (1, _LAST)), value=_CODE, paced=True).write(folder)
    job_id = await face.spawn(owner, label, command)
    before = sum(len(data) for _, data in first)

    async def has_printed() -> bool:
        job = await face.status(job_id, owner)
        return job.stdout_bytes + job.stderr_bytes == before and job.status.state is JobState.RUNNING

    await eventually(has_printed)
    [row] = [row for row in await face.rows(owner) if row.id == job_id]
    now = KnownLog.of([event async for event in face.read(job_id, owner, 0, follow=False)])
    assert [(piece.stream, piece.data) for piece in now.pieces] == [*first]
    later = _known_later(now)
    status: Job = await face.status(job_id, owner)
    job = _KnownJob(status, later.end)
    return RunningJob(
        Truth(label, job_id, owner, row.value, status, now, frozenset(), _EarlierJob(status)),
        Truth(label, job_id, owner, job, job, later, frozenset()),
        gate,
        parent_of(status.status.pid),
    )


def _known_later(now: KnownLog) -> KnownLog:
    """Return the log as it will be; the time of the last words is not known, hence zero."""
    last = Piece(now.size, Stream.STDOUT, now.sizes()[0], 0, _LAST)
    later = KnownLog(0, now.data + _LAST, [*now.pieces, last])
    data = {stream: b"".join(p.data for p in later.pieces if p.stream == stream) for stream in Stream}
    digests = [xxhash.xxh3_128(data[stream]).hexdigest() for stream in Stream]
    later.end = _KnownEnd(later.sizes(), (digests[0], digests[1]))
    return later
