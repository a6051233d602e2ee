"""Seeing output as it is printed: how late one line comes, and what many followers cost."""

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker_api.worker.v1 import JobEnd, SpawnRequest, Stream

from benchmarks.bench import Bench
from benchmarks.check import require
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.kernel import cpu_seconds_of
from benchmarks.programs import STAMP, stamp
from benchmarks.service import run, workerctl
from tests.daemon import Daemon
from workerctl.events import Output
from workerctl.log import LogCheck

_LINE_BYTES = 40
_LINE_INTERVAL_SECONDS = 0.005
_WRITE_BYTES = 50_000
_WRITES_PER_SECOND = 20


@dataclass(frozen=True, slots=True)
class Printer:
    """A program that prints lines with the time in them once its gate is opened."""

    gate: Path
    count: int
    interval_seconds: float
    line_bytes: int

    @property
    def command(self) -> tuple[str, ...]:
        """The command line."""
        numbers = (str(self.count), str(self.interval_seconds), str(self.line_bytes))
        return (sys.executable, "-S", str(STAMP), str(self.gate), *numbers)

    def open_gate(self) -> None:
        """Let it begin; blocks until it is there."""
        self.gate.write_bytes(b"")


@contextlib.contextmanager
def gated(bench: Bench, count: int, interval_seconds: float, line_bytes: int) -> Iterator[Printer]:
    """Make the gate of a printer, for as long as the context lasts."""
    gate = bench.folder / "gate"
    os.mkfifo(gate)
    try:
        yield Printer(gate, count, interval_seconds, line_bytes)
    finally:
        gate.unlink()


@contextlib.contextmanager
def one_line(bench: Bench) -> Iterator[Sides]:
    """Time lines from the job's write to a reader of the follower's standard output."""
    lines = gated(bench, bench.sizes.stamped_lines, _LINE_INTERVAL_SECONDS, _LINE_BYTES)
    with lines as printer, bench.daemon() as daemon:

        async def spawn() -> str:
            program, *arguments = printer.command
            async with daemon.client() as client:
                return await client.spawn(SpawnRequest(program=program, args=arguments))

        def ours() -> Reading:
            return time_lines(bench, workerctl(daemon, "stream-log", "--past-events", "--uuid", run(spawn())), printer)

        yield Sides(ours, peer=lambda: time_lines(bench, bench.ssh.command(*printer.command), printer))


def time_lines(bench: Bench, follower: list[str], printer: Printer) -> Reading:
    """Read what a follower prints.

    Returns:
        Median and 99th percentile of the lines' ways, in ms.
    """
    ways: list[float] = []
    with (
        bench.timed() as spent,
        subprocess.Popen(follower, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process,
    ):
        if process.stdout is None:
            raise AssertionError("a pipe was asked for")
        require(process.stdout.readline() == stamp.READY, "the program did not begin")
        printer.open_gate()
        for text in process.stdout:
            number, way = stamp.read(text)
            require(number == len(ways) and len(text) == printer.line_bytes, "a line came out of order, or cut")
            ways.append(way * 1e3)
    require(process.returncode == 0, f"{follower[0]} exited with {process.returncode}")
    require(len(ways) == printer.count, f"{len(ways)} lines came instead of {printer.count}")
    hundredths = statistics.quantiles(ways, n=100, method="inclusive")
    return Reading((hundredths[49], hundredths[98]), spent.cpu_seconds)


@contextlib.contextmanager
def many_followers(bench: Bench) -> Iterator[Sides]:
    """Have many follow one job, each over a connection of its own; the peer is one follower."""
    count = bench.sizes.follow_seconds * _WRITES_PER_SECOND
    with gated(bench, count, 1 / _WRITES_PER_SECOND, _WRITE_BYTES) as printer, bench.daemon() as daemon:

        def follow(followers: int) -> Callable[[], Reading]:
            return lambda: run(follow_at_once(bench, daemon, printer, followers))

        yield Sides(ours=follow(bench.sizes.followers), peer=follow(1))


async def follow_at_once(bench: Bench, daemon: Daemon, printer: Printer, followers: int) -> Reading:
    """Follow a job so many times.

    Returns:
        The daemon's CPU seconds while the job printed, and by how many seconds the slowest line came late.
    """
    program, *arguments = printer.command
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program=program, args=arguments))
    ready = asyncio.Barrier(followers + 1)
    async with asyncio.TaskGroup() as tasks:
        following = [tasks.create_task(follow(daemon, job_id, printer, ready)) for _ in range(followers)]
        await ready.wait()
        before = cpu_seconds_of(daemon.pid)
        with bench.timed() as spent:
            await asyncio.to_thread(printer.open_gate)
            lags = await asyncio.gather(*following)
    return Reading((cpu_seconds_of(daemon.pid) - before, max(lags)), spent.cpu_seconds)


async def follow(daemon: Daemon, job_id: str, printer: Printer, ready: asyncio.Barrier) -> float:
    """Follow a job to its end and check all of it; tell by how many seconds its slowest line came late."""
    check = LogCheck(tuple(Stream), from_start=True)
    received, lines, slowest = bytearray(), 0, 0.0
    async with daemon.client() as client:
        async for event in client.stream_log(job_id):
            if isinstance(event, JobEnd):
                check.end(event)
                break
            if not isinstance(event, Output):
                continue
            check.output(event)
            received += event.data
            if lines == 0 and received == stamp.READY:
                received.clear()
                await ready.wait()
            while len(received) >= printer.line_bytes:
                number, lag = stamp.read(bytes(received[: printer.line_bytes]))
                require(number == lines, "a line came out of order")
                lines, slowest = lines + 1, max(slowest, lag)
                del received[: printer.line_bytes]
    require(lines == printer.count and not received, f"{lines} lines came instead of {printer.count}")
    return slowest


BENCHMARKS = (
    Benchmark(
        name="one-line",
        prepare=one_line,
        rounds=3,
        over_ssh=True,
        figures=tuple(
            Figure(
                name=f"one line, from the job's write to the follower's reader, {which}",
                ours="`workerctl stream-log`, through the disk",
                peer="`ssh host program`",
                unit="ms",
                goals=(Goal("≤", 3, of_peer=True),),
            )
            for which in ("p50", "p99")
        ),
    ),
    Benchmark(
        name="followers",
        prepare=many_followers,
        rounds=3,
        figures=(
            Figure(
                name="100 followers of 1 MB/s, CPU of the daemon",
                ours="100 followers, each with its own connection, for 10 s",
                peer="1 follower",
                unit="s",
                goals=(Goal("≤", 60, of_peer=True),),
            ),
            Figure(
                name="100 followers of 1 MB/s, the slowest line of all",
                ours="100 followers, each with its own connection, for 10 s",
                peer="1 follower",
                unit="s",
                goals=(Goal("≤", 1.0),),
            ),
        ),
    ),
)
