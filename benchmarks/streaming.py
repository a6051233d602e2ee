"""Much output: stored, live, captured alone, and in a million small pieces."""

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from worker_api.worker.v1 import Stream

from benchmarks.bench import Bench
from benchmarks.check import digest_of_zeros, require, require_file, write_random
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.programs import ALTERNATE
from benchmarks.programs.alternate import LINE_BYTES, line
from benchmarks.service import end_of, newest_job, require_recorded, run, run_to_end, workerctl
from tests.daemon import Daemon
from workerctl.log import LogCheck

_MEGA = 1e6


def copy(bench: Bench, command: list[str], size_bytes: int, to: Path, digest: bytes | None = None) -> Reading:
    """Run a command that prints so much, into a new file, or away.

    Args:
        size_bytes: how many bytes arrive; what is given away cannot be counted.
        digest: of all bytes; None when they are given away.

    Returns:
        MB/s of the whole command.
    """
    with to.open("wb") as stdout, bench.timed() as spent:
        subprocess.run(command, stdout=stdout, stdin=subprocess.DEVNULL, check=True)
    if digest is not None:
        require_file(to, size_bytes, digest)
        to.unlink()
    return Reading((size_bytes / _MEGA / spent.wall_seconds,), spent.cpu_seconds)


@contextlib.contextmanager
def stored(bench: Bench, *, to_file: bool) -> Iterator[Sides]:
    """Read a log that was stored before: random bytes, which the peer reads from the same file."""
    size = bench.sizes.log_bytes
    source = bench.folder / "source"
    digest = write_random(source, size)
    to, expected = (bench.folder / "copy", digest) if to_file else (Path(os.devnull), None)
    with bench.daemon() as daemon:

        async def store() -> str:
            async with daemon.client() as client:
                job_id = await run_to_end(client, "cat", str(source))
                require_recorded(await client.status(job_id), size, digest)
                return job_id

        job_id = run(store())
        source.unlink()
        output = str(daemon.folder(job_id).output)
        ours = workerctl(daemon, "stream-log", "--past-events", "--uuid", job_id)
        yield Sides(
            ours=lambda: copy(bench, ours, size, to, expected),
            peer=lambda: copy(bench, bench.ssh.command("cat", output), size, to, expected),
        )


@contextlib.contextmanager
def live(bench: Bench) -> Iterator[Sides]:
    """See a job's output as it is printed, which ours also stores on the way."""
    size = bench.sizes.log_bytes
    digest = digest_of_zeros(size)
    program = ("head", "-c", str(size), "/dev/zero")
    to = Path(os.devnull)
    with bench.daemon() as daemon:

        def ours() -> Reading:
            reading = copy(bench, workerctl(daemon, "run", "--", *program), size, to)
            run(check_and_remove(daemon, size, digest))
            return reading

        yield Sides(ours, peer=lambda: copy(bench, bench.ssh.command(*program), size, to))


async def check_and_remove(daemon: Daemon, size_bytes: int, digest: bytes) -> None:
    """Check what the newest job is said to have written, and make room for the next."""
    async with daemon.client() as client:
        job = await newest_job(client)
        require_recorded(job, size_bytes, digest)
        await client.remove(job.id)


BENCHMARKS = (
    Benchmark(
        name="stored-away",
        prepare=functools.partial(stored, to_file=False),
        rounds=5,
        over_ssh=True,
        figures=(
            Figure(
                name="a stored log, given away",
                ours="`workerctl stream-log --past-events … > /dev/null`",
                peer="`ssh host cat file > /dev/null`",
                unit="MB/s",
                goals=(Goal("≥", 1.3, of_peer=True),),
            ),
        ),
    ),
    Benchmark(
        name="live",
        prepare=live,
        rounds=5,
        over_ssh=True,
        figures=(
            Figure(
                name="a live job, captured on the way",
                ours="`workerctl run -- head -c 1G /dev/zero`",
                peer="`ssh host head -c 1G /dev/zero`",
                unit="MB/s",
                goals=(Goal("≥", 1.0, of_peer=True),),
            ),
        ),
    ),
)
