"""Output in a million small pieces, from both streams in turn."""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash
from worker_api.worker.v1 import Job, JobEnd, Stream

from benchmarks.bench import Bench
from benchmarks.check import require, require_file
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.programs import ALTERNATE, alternate
from benchmarks.service import require_recorded, run, run_to_end, workerctl
from benchmarks.streaming import MEGA, copy
from tests.daemon import Daemon
from workerctl.events import Output
from workerctl.log import LogCheck


@dataclass(frozen=True, slots=True)
class Chatter:
    """A chatty job that has ended, and what each stream has to be: its size in bytes and its digest."""

    daemon: Daemon
    job_id: str
    program: tuple[str, ...]
    stream_bytes: int
    digests: dict[Stream, bytes]


@contextlib.contextmanager
def chatter(bench: Bench) -> Iterator[Chatter]:
    """Run the chatty job and check what is stored of it."""
    count = bench.sizes.chatty_lines
    program = (sys.executable, "-S", str(ALTERNATE), str(count))
    streams = {Stream.STDOUT: 0, Stream.STDERR: 1}
    digests = {
        stream: xxhash.xxh3_128(b"".join(map(alternate.line, range(first, count, 2)))).digest()
        for stream, first in streams.items()
    }
    stream_bytes = count // 2 * alternate.LINE_BYTES
    with bench.daemon() as daemon:

        async def store() -> Job:
            async with daemon.client() as client:
                return await client.status(await run_to_end(client, *program))

        job = run(store())
        for stream, digest in digests.items():
            require_recorded(job, stream, stream_bytes, digest)
        yield Chatter(daemon, job.id, program, stream_bytes, digests)


@contextlib.contextmanager
def one_of_two_streams(bench: Bench) -> Iterator[Sides]:
    """Read one stream of the chatty job."""
    with chatter(bench) as job:
        ours = workerctl(job.daemon, "stream-log", "--past-events", "--stream-type", "stdout", "--uuid", job.job_id)
        one_stream = ("sh", "-c", f"exec {shlex.join(job.program)} 2> /dev/null")
        to, digest = bench.folder / "copy", job.digests[Stream.STDOUT]
        yield Sides(
            ours=lambda: copy(bench, ours, job.stream_bytes, to, digest),
            peer=lambda: copy(bench, bench.ssh.command(*one_stream), job.stream_bytes, to, digest),
        )


@contextlib.contextmanager
def both_streams(bench: Bench) -> Iterator[Sides]:
    """Read both streams of the chatty job, in their order."""
    with chatter(bench) as job:
        yield Sides(ours=lambda: run(replay(bench, job)), peer=lambda: receive_both(bench, job))


async def replay(bench: Bench, job: Chatter) -> Reading:
    """Read both streams through the library, which checks them against what is recorded."""
    check = LogCheck(tuple(job.digests), from_start=True)
    ended = False
    with bench.timed() as spent:
        async with job.daemon.client() as client:
            async for event in client.stream_log(job.job_id):
                if isinstance(event, Output):
                    check.output(event)
                elif isinstance(event, JobEnd):
                    check.end(event)
                    ended = True
    require(ended, "the log stopped before its end")
    return Reading((spent.per_second(2 * job.stream_bytes / MEGA),), spent.cpu_seconds)


def receive_both(bench: Bench, job: Chatter) -> Reading:
    """Run the chatty program over ssh."""
    paths = {stream: bench.folder / stream.name for stream in job.digests}
    with paths[Stream.STDOUT].open("wb") as out, paths[Stream.STDERR].open("wb") as err, bench.timed() as spent:
        subprocess.run(bench.ssh.command(*job.program), stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=True)
    for stream, path in paths.items():
        require_file(path, job.stream_bytes, job.digests[stream])
        path.unlink()
    return Reading((spent.per_second(2 * job.stream_bytes / MEGA),), spent.cpu_seconds)


BENCHMARKS = (
    Benchmark(
        name="chatty-one-stream",
        prepare=one_of_two_streams,
        rounds=5,
        over_ssh=True,
        figures=(
            Figure(
                name="1,000,000 lines of 40 bytes, alternating, one stream of them",
                ours="`workerctl stream-log --past-events --stream-type stdout …`",
                peer="`ssh host program 2> /dev/null`",
                unit="MB/s",
                goals=(Goal("≥", 1.0, of_peer=True),),
            ),
        ),
    ),
    Benchmark(
        name="chatty-both-streams",
        prepare=both_streams,
        rounds=5,
        over_ssh=True,
        figures=(
            Figure(
                name="1,000,000 lines of 40 bytes, alternating, both streams",
                ours="`Client.stream_log`",
                peer="`ssh host program`",
                unit="MB/s",
                goals=(Goal("≥", 1.0, of_peer=True),),
            ),
        ),
    ),
)
