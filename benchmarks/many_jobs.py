"""Ten thousand jobs that have ended: what they cost at a start, and in a list."""

import contextlib
from collections.abc import Iterator

from worker_api.worker.v1 import ListRequest, WorkerServiceStub

from benchmarks.bench import Bench
from benchmarks.check import require
from benchmarks.figure import Benchmark, Figure, Goal, Reading, Sides
from benchmarks.service import run, run_to_end
from tests.daemon import Daemon, multiply
from tests.waiting import wait_unlocked

_PAGE = 50
_LISTS = 20


@contextlib.contextmanager
def with_ended_jobs(bench: Bench, count: int) -> Iterator[Daemon]:
    """Run a daemon that has so many jobs that have ended, all of them in its catalogue."""
    with bench.daemon() as daemon:

        async def make_one() -> str:
            async with daemon.client() as client:
                return await run_to_end(client, "sh", "-c", "echo out; echo err >&2")

        async def count_jobs() -> int:
            async with daemon.client() as client:
                return len([job async for job in client.list_jobs()])

        job_id = run(make_one())
        daemon.stop()
        wait_unlocked(daemon.folder(job_id))
        multiply(daemon.folder(job_id), count - 1)
        for catalogue in daemon.state.glob("catalog.*"):
            catalogue.unlink()
        daemon.start()
        require(run(count_jobs()) == count, f"not all of {count} jobs are listed")
        yield daemon


@contextlib.contextmanager
def start(bench: Bench) -> Iterator[Sides]:
    """Start a daemon until it has answered."""
    with with_ended_jobs(bench, bench.sizes.ended_jobs) as daemon:

        async def answer() -> None:
            async with daemon.client() as client:
                await client.whoami()

        def ours() -> Reading:
            daemon.stop()
            with bench.timed() as spent:
                daemon.start()
                run(answer())
            return Reading((spent.wall_seconds,), spent.cpu_seconds)

        yield Sides(ours)


@contextlib.contextmanager
def list_newest(bench: Bench) -> Iterator[Sides]:
    """List the newest jobs of many, and of no more than are listed."""
    with with_ended_jobs(bench, bench.sizes.ended_jobs) as many, with_ended_jobs(bench, _PAGE) as few:
        yield Sides(ours=lambda: run(list_page(bench, many)), peer=lambda: run(list_page(bench, few)))


async def list_page(bench: Bench, daemon: Daemon) -> Reading:
    """List one page some times.

    Returns:
        Milliseconds for each time.
    """
    request = ListRequest(page_size=_PAGE)
    async with daemon.client() as client:
        await client.whoami()
        with bench.timed() as spent:
            for _ in range(_LISTS):
                page = await client.call(lambda channel: WorkerServiceStub(channel).list(request))
                require(len({job.id for job in page.jobs}) == _PAGE, f"{len(page.jobs)} jobs came instead of {_PAGE}")
    return Reading((spent.wall_seconds / _LISTS * 1e3,), spent.cpu_seconds)


BENCHMARKS = (
    Benchmark(
        name="start-with-ended-jobs",
        prepare=start,
        rounds=5,
        figures=(
            Figure(
                name="start with 10,000 ended jobs, to the first answer",
                ours="`workerd` with its catalogue as it was",
                unit="s",
                goals=(Goal("≤", 2),),
            ),
        ),
    ),
    Benchmark(
        name="list-of-ended-jobs",
        prepare=list_newest,
        rounds=5,
        figures=(
            Figure(
                name="the newest 50 of 10,000 ended jobs",
                ours="one `List`",
                peer="the same with 50 jobs in all",
                unit="ms",
                goals=(Goal("≤", 1.3, of_peer=True),),
            ),
        ),
    ),
)
