"""Many calls at once: what a second API process adds."""

import asyncio
import contextlib
from collections.abc import Iterator

import uvloop
from worker_api.worker.v1 import StatusRequest

from benchmarks.bench import Bench
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.load import connect
from benchmarks.service import run_to_end
from tests.daemon import Daemon

_CONNECTIONS = 16
_IN_FLIGHT = 8


@contextlib.contextmanager
def two_processes(bench: Bench) -> Iterator[Sides]:
    """Ask for one job's status as fast as there are answers."""
    with bench.daemon("--processes", "2") as two, bench.daemon("--processes", "1") as one:
        yield Sides(ours=lambda: ask(bench, two), peer=lambda: ask(bench, one))


def ask(bench: Bench, daemon: Daemon) -> Reading:
    """Make calls for some seconds, many at a time over many connections.

    Returns:
        Answers a second.
    """

    async def make_calls() -> Reading:
        async with daemon.client() as client:
            job_id = await run_to_end(client, "true")
        request = bytes(StatusRequest(job_id=job_id))
        host, port = daemon.target().resolve()
        connections = [
            await connect(host, port, daemon.target().tls(), "/worker.v1.WorkerService/Status", request)
            for _ in range(_CONNECTIONS)
        ]
        with bench.timed() as spent:
            counts = await asyncio.gather(
                *(connection.call(_IN_FLIGHT, bench.sizes.call_seconds) for connection in connections)
            )
        return Reading((spent.per_second(sum(counts)),), spent.cpu_seconds)

    return uvloop.run(make_calls())


BENCHMARKS = (
    Benchmark(
        name="two-processes",
        prepare=two_processes,
        rounds=3,
        figures=(
            Figure(
                name="status calls with two API processes",
                ours="`workerd --processes 2`",
                peer="`workerd --processes 1`",
                unit="calls/s",
                goals=(Goal("≥", 1.6, of_peer=True),),
            ),
        ),
    ),
)
