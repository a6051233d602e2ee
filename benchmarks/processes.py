"""Many calls at once: what a second API process adds."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import grpc
from worker_api.worker.v1 import StatusRequest

from benchmarks.bench import Bench
from benchmarks.check import require
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.service import run, run_to_end
from pki.store import key_path
from tests.daemon import USER, Daemon

_CONNECTIONS = 16
_IN_FLIGHT = 8


@contextlib.contextmanager
def two_processes(bench: Bench) -> Iterator[Sides]:
    """Ask for one job's status as fast as there are answers."""
    with bench.daemon("--processes", "2") as two, bench.daemon("--processes", "1") as one:
        yield Sides(ours=lambda: run(ask(bench, two)), peer=lambda: run(ask(bench, one)))


async def ask(bench: Bench, daemon: Daemon) -> Reading:
    """Make calls for some seconds, many at a time over many connections.

    grpcio makes them, with requests that are encoded once, and answers that are compared and not decoded: with two
    processors the client must leave as much of them to the daemon as it can.

    Returns:
        Answers a second.
    """
    async with daemon.client() as client:
        job_id = await run_to_end(client, "true")
    request = bytes(StatusRequest(job_id=job_id))
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(connect(daemon)) for _ in range(_CONNECTIONS)]
        calls = [channel.unary_unary("/worker.v1.WorkerService/Status") for channel in channels]
        expected, *others = await asyncio.gather(*(call(request) for call in calls))
        answers = 0

        async def work(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], until: float) -> None:
            nonlocal answers
            while time.monotonic() < until:
                require(await call(request) == expected, "two answers about a job that has ended differ")
                answers += 1

        with bench.timed() as spent:
            until = time.monotonic() + bench.sizes.call_seconds
            await asyncio.gather(*(work(call, until) for call in calls for _ in range(_IN_FLIGHT)))
    require(set(others) == {expected}, "two answers about a job that has ended differ")
    return Reading((spent.per_second(answers),), spent.cpu_seconds)


def connect(daemon: Daemon) -> grpc.aio.Channel:
    """Make a connection that is shared with no other channel."""
    certificate = daemon.pki.client_certificate(USER)
    credentials = grpc.ssl_channel_credentials(
        daemon.pki.server_ca.read_bytes(), key_path(certificate).read_bytes(), certificate.read_bytes()
    )
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(daemon.endpoint.removeprefix("https://"), credentials, options)


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
