"""Those who must not be disturbed by an attack: a job, somebody who follows it, and the daemon itself."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from worker_api.worker.v1 import JobEnd, SpawnRequest

from tests.daemon import Daemon
from tests.holding import forget_peak, open_of, peak_bytes, resident_bytes, settle
from workerctl.client import Client
from workerctl.events import Output

T = TypeVar("T")

# Each line has its number; the last is the one that the job has written when it is told to end.
_COUNT = 'n=0; while [ ! -e "$0" ]; do echo "line $n"; n=$((n+1)); sleep 0.02; done; echo "end $n"'
_LONGEST_SILENCE_SECONDS = 10.0
_END_SECONDS = 60.0
_QUIET = 8  # looks that see the same
_FAULTS = ("Traceback", "a call failed", "Fatal error", "exception", "never retrieved", "never awaited")


@dataclass
class Follower:
    """Somebody with a client of their own who follows a job and keeps what comes.

    Attributes:
        silence_seconds: the longest time in which nothing came.
    """

    client: Client
    job_id: str
    data: bytes = b""
    end: JobEnd | None = None
    silence_seconds: float = 0.0

    async def follow(self, began: asyncio.Event) -> None:
        """Follow the job to its end."""
        heard_at = time.monotonic()
        async for event in self.client.stream_log(self.job_id):
            self.silence_seconds = max(self.silence_seconds, time.monotonic() - heard_at)
            heard_at = time.monotonic()
            match event:
                case Output(data=data):
                    self.data += data
                    began.set()
                case JobEnd():
                    self.end = event
                case _:
                    raise AssertionError(f"a log without gaps has {event!r}")

    def check(self) -> None:
        """See that every line came, in order, and the end."""
        lines = self.data.decode().splitlines()
        assert lines == [*(f"line {number}" for number in range(len(lines) - 1)), f"end {len(lines) - 1}"]
        assert self.end is not None
        assert self.end.exited is not None
        assert self.end.exited.code == 0
        assert self.silence_seconds < _LONGEST_SILENCE_SECONDS


@dataclass
class Watch:
    """What was seen during an attack; complete when it is over.

    Attributes:
        before, peak, after: bytes of the daemon's memory.
        lines: how many the follower got.
    """

    before: int
    peak: int = 0
    after: int = 0
    lines: int = 0
    silence_seconds: float = 0.0

    @property
    def grown(self) -> int:
        """How many bytes more than before it had at most."""
        return self.peak - self.before

    def __str__(self) -> str:
        sizes = (f"{size / 1e6:.0f}" for size in (self.before, self.peak, self.after))
        return f"RSS {' → '.join(sizes)} MB, {self.lines} lines followed, silence {self.silence_seconds:.2f} s at most"


def held_by(daemon: Daemon) -> tuple[int, int]:
    """Count the descriptors and watches of a daemon; its processes come and go with the steps of the job."""
    return open_of(daemon.pid)


async def when_quiet(look: Callable[[], T]) -> T:
    """Give what is seen when what was before has been let go of."""
    seen = [look()]
    async with asyncio.timeout(_END_SECONDS):
        while len(seen) < _QUIET or any(each != seen[-1] for each in seen[-_QUIET:]):
            await asyncio.sleep(0.05)
            seen.append(look())
    return seen[-1]


@contextlib.asynccontextmanager
async def undisturbed(daemon: Daemon, folder: Path) -> AsyncIterator[Watch]:
    """Have a job run and be followed meanwhile, and see afterwards that neither was harmed, nor the daemon.

    Args:
        folder: one of the test's own.
    """
    stop = folder / f"stop-{time.monotonic_ns()}"
    async with daemon.client() as client, daemon.client() as other:
        await other.whoami()
        job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", _COUNT, str(stop)]))
        follower, began = Follower(client, job_id), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follower.follow(began))
            async with asyncio.timeout(_END_SECONDS):
                await began.wait()
            before = await when_quiet(lambda: held_by(daemon))
            watch = Watch(resident_bytes(daemon.pid))
            forget_peak(daemon.pid)
            try:
                yield watch
                await settle(lambda: [max(*pair) for pair in zip(held_by(daemon), before, strict=True)], [*before])
                async with asyncio.timeout(_END_SECONDS):
                    assert (await other.status(job_id)).end is None
            finally:
                watch.peak, watch.after = peak_bytes(daemon.pid), resident_bytes(daemon.pid)
                stop.touch()
    follower.check()
    watch.lines, watch.silence_seconds = follower.data.count(b"\n"), follower.silence_seconds
    check_log(daemon.errors())


def check_log(text: str) -> None:
    """See that a daemon's log tells of no fault of its own."""
    assert not [line for line in text.splitlines() if any(fault in line for fault in _FAULTS)], text[-20_000:]
