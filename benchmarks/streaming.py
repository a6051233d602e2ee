"""Much output: stored, live, and captured alone."""

import contextlib
import functools
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from worker_api.worker.v1 import Stream

from benchmarks.bench import Bench
from benchmarks.check import digest_of_zeros, require_file, write_random
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.service import newest_job, require_recorded, run, run_to_end, workerctl
from tests.daemon import Daemon

MEGA = 1e6


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
    return Reading((spent.per_second(size_bytes / MEGA),), spent.cpu_seconds)


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
                require_recorded(await client.status(job_id), Stream.STDOUT, size, digest)
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


@contextlib.contextmanager
def captured(bench: Bench) -> Iterator[Sides]:
    """Store what a job prints, without anybody who reads it."""
    size = bench.sizes.capture_bytes
    digest = digest_of_zeros(size)
    with bench.daemon() as daemon:

        async def ours() -> Reading:
            async with daemon.client() as client:
                await client.whoami()
                with bench.timed() as spent:
                    await run_to_end(client, "head", "-c", str(size), "/dev/zero")
            await check_and_remove(daemon, size, digest)
            rate = spent.per_second(size / MEGA)
            return Reading((rate, rate), spent.cpu_seconds)

        yield Sides(lambda: run(ours()), peer=lambda: redirect(bench, size, digest))


def redirect(bench: Bench, size_bytes: int, digest: bytes) -> Reading:
    """Have a shell store what a program prints, as if it were for nobody, and then also force it to the disk."""
    path = bench.folder / "redirected"
    with bench.timed() as in_all:
        with bench.timed() as spent:
            subprocess.run(["sh", "-c", f"head -c {size_bytes} /dev/zero | cat > {shlex.quote(str(path))}"], check=True)
        with path.open("rb") as file:
            os.fdatasync(file)
    require_file(path, size_bytes, digest)
    path.unlink()
    size = size_bytes / MEGA
    return Reading((spent.per_second(size), in_all.per_second(size)), in_all.cpu_seconds)


async def check_and_remove(daemon: Daemon, size_bytes: int, digest: bytes) -> None:
    """Check what the newest job is said to have written, and make room for the next."""
    async with daemon.client() as client:
        job = await newest_job(client)
        require_recorded(job, Stream.STDOUT, size_bytes, digest)
        await client.remove(job.id)


BENCHMARKS = (
    Benchmark(
        name="stored-away",
        prepare=functools.partial(stored, to_file=False),
        rounds=5,
        over_ssh=True,
        figures=(
            Figure(
                name="a stored log of 1 GB, given away",
                ours="`workerctl stream-log --past-events … > /dev/null`",
                peer="`ssh host cat file > /dev/null`",
                unit="MB/s",
                goals=(Goal("≥", 1.3, of_peer=True),),
            ),
        ),
    ),
    Benchmark(
        name="stored-to-file",
        prepare=functools.partial(stored, to_file=True),
        rounds=5,
        over_ssh=True,
        figures=(
            Figure(
                name="a stored log of 1 GB, to a file",
                ours="`workerctl stream-log --past-events … > copy`",
                peer="`ssh host cat file > copy`",
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
                name="a live job of 1 GB, captured on the way",
                ours="`workerctl run -- head -c 1G /dev/zero`",
                peer="`ssh host head -c 1G /dev/zero`",
                unit="MB/s",
                goals=(Goal("≥", 1.0, of_peer=True),),
            ),
        ),
    ),
    Benchmark(
        name="capture",
        prepare=captured,
        rounds=5,
        figures=(
            Figure(
                name="2 GB captured alone",
                ours="`head -c 2G /dev/zero`, from the spawn until its end is known",
                peer="`head -c 2G /dev/zero | cat > file`",
                unit="MB/s",
                goals=(Goal("≥", 1.3, of_peer=True),),
            ),
            Figure(
                name="2 GB captured alone, both on the disk at the end",
                ours="the same: a job's log is on the disk before its end is told",
                peer="the same, with fdatasync(2)",
                unit="MB/s",
            ),
        ),
    ),
)
