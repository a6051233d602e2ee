"""Short work: programs that end at once, and a client that has just been started."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.bench import Bench
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.service import run, run_to_end, workerctl
from tests.daemon import Daemon


def start(bench: Bench, command: list[str]) -> Reading:
    """Run a command some times, one after the other.

    Returns:
        Milliseconds for each time.
    """
    count = bench.sizes.cold_starts
    with bench.timed() as spent:
        for _ in range(count):
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return Reading((spent.wall_seconds / count * 1e3,), spent.cpu_seconds)


@contextlib.contextmanager
def run_true(bench: Bench) -> Iterator[Sides]:
    """Run the shortest program."""
    with bench.daemon() as daemon:
        ours = workerctl(daemon, "run", "--", "true")
        yield Sides(ours=lambda: start(bench, ours), peer=lambda: start(bench, bench.ssh.command("true")))


@contextlib.contextmanager
def ask_status(bench: Bench) -> Iterator[Sides]:
    """Ask for one job; the peer only loads what no client can do without."""
    with bench.daemon() as daemon:

        async def spawn() -> str:
            async with daemon.client() as client:
                return await run_to_end(client, "true")

        ours = workerctl(daemon, "status", "--uuid", run(spawn()))
        peer = [sys.executable, "-c", "import asyncio, ssl"]
        yield Sides(ours=lambda: start(bench, ours), peer=lambda: start(bench, peer))


@contextlib.contextmanager
def many(bench: Bench) -> Iterator[Sides]:
    """Run many short programs over one connection."""
    with bench.daemon() as daemon:

        def peer() -> Reading:
            with bench.ssh.multiplexed() as connection:
                return start_through(bench, connection)

        yield Sides(ours=lambda: run(spawn_many(bench, daemon)), peer=peer)


async def spawn_many(bench: Bench, daemon: Daemon) -> Reading:
    """Run jobs, so many at a time, each to its end.

    Returns:
        Jobs a second.
    """
    left = iter(range(bench.sizes.short_jobs))
    async with daemon.client() as client:
        await client.whoami()

        async def work() -> None:
            for _ in left:
                await run_to_end(client, "true")

        with bench.timed() as spent:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(bench.sizes.in_flight):
                    tasks.create_task(work())
    return Reading((spent.per_second(bench.sizes.short_jobs),), spent.cpu_seconds)


def start_through(bench: Bench, connection: list[str]) -> Reading:
    """Run programs over a connection that is open, so many at a time; xargs(1) fails if one of them does.

    Returns:
        Programs a second.
    """
    numbers = "\n".join(map(str, range(bench.sizes.short_jobs)))
    at_a_time = ("xargs", "-n", "1", "-P", str(bench.sizes.in_flight))
    with bench.timed() as spent:
        subprocess.run([*at_a_time, *connection, "true"], input=numbers, text=True, check=True)
    return Reading((spent.per_second(bench.sizes.short_jobs),), spent.cpu_seconds)


BENCHMARKS = (
    Benchmark(
        name="run-true",
        prepare=run_true,
        rounds=5,
        over_ssh=True,
        figures=(
            Figure(
                name="the shortest program, cold client",
                ours="`workerctl run -- true`",
                peer="`ssh host true`",
                unit="ms",
                goals=(Goal("≤", 0.8, of_peer=True),),
            ),
        ),
    ),
    Benchmark(
        name="status",
        prepare=ask_status,
        rounds=5,
        figures=(
            Figure(
                name="the status of a job, cold client",
                ours="`workerctl status`",
                peer="`python -c 'import asyncio, ssl'`",
                unit="ms",
                goals=(Goal("≤", 3, of_peer=True),),
            ),
        ),
    ),
    Benchmark(
        name="many-true",
        prepare=many,
        rounds=3,
        over_ssh=True,
        figures=(
            Figure(
                name="2,000 × true, 32 in flight, one connection",
                ours="`Client.spawn`, until each one's end is known",
                peer="`ssh host true` through a ControlMaster",
                unit="jobs/s",
                goals=(Goal("≥", 5, of_peer=True), Goal("≥", 150)),
            ),
        ),
    ),
)
