"""What the daemon, a job and a follower take of the memory while nothing happens."""

import asyncio
import contextlib
import statistics
from collections.abc import Iterator

from worker_api.worker.v1 import SpawnRequest

from benchmarks.bench import Bench
from benchmarks.check import require
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.kernel import memory_bytes, own_memory_bytes
from benchmarks.service import run
from tests.daemon import Daemon
from workerctl.client import Client
from workerctl.events import Output
from workerd.engine.tree import descendants, parent_of

_MEGA = 1e6
_KILO = 1e3
_SHARING = 50  # followers on one connection, of the 100 streams that HTTP/2 peers commonly allow (RFC 9113 §6.5.2)


@contextlib.contextmanager
def at_rest(bench: Bench) -> Iterator[Sides]:
    """Weigh a daemon that has answered one call: itself, and with its zygote, which shares much with it."""

    def ours() -> Reading:
        with bench.daemon() as daemon:
            run(greet(daemon))
            pids = [daemon.pid, *(pid for pid, _ in descendants(daemon.pid))]
            shared_out = sum(memory_bytes(pid, ("Pss",)) for pid in pids)
            return Reading((memory_bytes(daemon.pid, ("Rss",)) / _MEGA, shared_out / _MEGA))

    yield Sides(ours)


async def greet(daemon: Daemon) -> None:
    """Make a call."""
    async with daemon.client() as client:
        await client.whoami()


@contextlib.contextmanager
def of_idle_job(bench: Bench) -> Iterator[Sides]:
    """Weigh the supervisors of jobs that only wait."""

    async def weigh(daemon: Daemon) -> Reading:
        async with daemon.client() as client:
            supervisors = [await idle_supervisor(client) for _ in range(bench.sizes.idle_jobs)]
            return Reading((statistics.mean(map(own_memory_bytes, supervisors)) / _MEGA,))

    def ours() -> Reading:
        with bench.daemon() as daemon:
            return run(weigh(daemon))

    yield Sides(ours)


async def idle_supervisor(client: Client) -> int:
    """Start a job that waits, and tell the id of the process that supervises it."""
    job_id = await client.spawn(SpawnRequest(program="sleep", args=["infinity"]))
    supervisor = parent_of((await client.status(job_id)).pid)
    if supervisor is None:
        raise AssertionError("a job that waits runs")
    return supervisor


@contextlib.contextmanager
def of_idle_follower(bench: Bench) -> Iterator[Sides]:
    """Weigh the daemon with and without many followers of a job that prints nothing more."""
    count = bench.sizes.idle_followers

    async def weigh(daemon: Daemon, clients: list[Client]) -> float:
        async with contextlib.AsyncExitStack() as stack:
            for client in set(clients):
                await stack.enter_async_context(client)
            job_id = await clients[0].spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep infinity"]))
            await follow_first(clients[0], job_id, stack)  # what the first one has loaded is not the others'
            before = own_memory_bytes(daemon.pid)
            await asyncio.gather(*(follow_first(client, job_id, stack) for client in clients))
            return (own_memory_bytes(daemon.pid) - before) / count / _KILO

    def ours() -> Reading:
        values = []
        for connections in (count, max(1, count // _SHARING)):
            with bench.daemon() as daemon:
                clients = [daemon.client() for _ in range(connections)]
                values.append(run(weigh(daemon, clients * (count // connections))))
        return Reading(tuple(values))

    yield Sides(ours)


async def follow_first(client: Client, job_id: str, stack: contextlib.AsyncExitStack) -> None:
    """Follow a job until something has come, and stay."""
    events = await stack.enter_async_context(contextlib.aclosing(client.stream_log(job_id)))
    event = await anext(events)
    require(isinstance(event, Output) and event.data == b"ready\n", "the first event is not the first output")


BENCHMARKS = (
    Benchmark(
        name="memory-at-rest",
        prepare=at_rest,
        rounds=3,
        figures=(
            Figure(
                name="memory of the daemon at rest",
                ours="RSS of `workerd`",
                unit="MB",
                goals=(Goal("≤", 60),),
            ),
            Figure(
                name="memory of the daemon at rest, with its zygote",
                ours="PSS of both, which counts shared pages once",
                unit="MB",
                goals=(Goal("≤", 60),),
            ),
        ),
    ),
    Benchmark(
        name="memory-of-job",
        prepare=of_idle_job,
        rounds=3,
        figures=(
            Figure(
                name="memory of an idle job",
                ours="what its supervisor shares with no other process",
                unit="MB",
                goals=(Goal("≤", 2),),
            ),
        ),
    ),
    Benchmark(
        name="memory-of-follower",
        prepare=of_idle_follower,
        rounds=3,
        figures=(
            Figure(
                name="memory of an idle follower with a connection of its own",
                ours="what the daemon takes more for each of 200",
                unit="kB",
                goals=(Goal("≤", 64),),
            ),
            Figure(
                name="memory of an idle follower on a connection that others share",
                ours="what the daemon takes more for each of 200",
                unit="kB",
                goals=(Goal("≤", 64),),
            ),
        ),
    ),
)
