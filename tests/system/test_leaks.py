"""Nothing is left behind: after many jobs and many broken streams the daemon holds what it held before."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpclib.exceptions import StreamTerminatedError
from worker_api.worker.v1 import JobEnd, SpawnRequest, StreamLogRequest, WorkerServiceStub

from tests.daemon import Daemon, daemon_in_this_process
from tests.holding import Holding, resident_bytes, settle, tasks_by_name
from tests.waiting import wait_unlocked
from workerctl.client import Client
from workerctl.target import Target
from workerctl.transport import WorkerChannel

AT_ONCE = 5
WARM_UP = 400
COUNT = 1000
LONG_BYTES = 50_000_000
MAX_GROWTH_BYTES = 10_000_000  # the allocator's; what each of them left behind would be more


async def repeat(act: Callable[[], Awaitable[None]], count: int) -> None:
    """Do something many times, a handful of times at once."""

    async def do_some() -> None:
        for _ in range(count // AT_ONCE):
            await act()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(do_some())


async def run_a_job(client: Client) -> None:
    """Run a job, and follow it to its end."""
    job_id = await client.spawn(SpawnRequest(program="true"))
    assert isinstance([event async for event in client.stream_log(job_id)][-1], JobEnd)


async def leave_a_stream(client: Client, job_id: str) -> None:
    """Follow a running job, and call off in the middle."""
    async with contextlib.aclosing(client.stream_log(job_id)) as events:
        await anext(events)


async def cut_a_stream(target: Target, job_id: str) -> None:
    """Follow a running job over a connection of its own, and cut that in the middle without a word."""
    with contextlib.closing(WorkerChannel(*target.resolve(), target.tls())) as channel:
        request = StreamLogRequest(job_id=job_id, follow=True)
        with contextlib.suppress(StreamTerminatedError):
            async for _ in WorkerServiceStub(channel).stream_log(request):
                assert channel._last is not None
                channel._last.transport.abort()


async def leave_with_the_connection(daemon: Daemon, job_id: str) -> None:
    """Call off in the middle, and hang up: the daemon hears of both at once."""
    async with daemon.client() as client:
        await leave_a_stream(client, job_id)


async def use(client: Client, target: Target, count: int) -> None:
    """Run so many jobs and break so many streams of one that runs, half of them each way."""
    job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
    await repeat(lambda: run_a_job(client), count)
    await repeat(lambda: leave_a_stream(client, job_id), count // 2)
    await repeat(lambda: cut_a_stream(target, job_id), count // 2)
    await client.stop(job_id)
    assert isinstance([event async for event in client.stream_log(job_id)][-1], JobEnd)


@pytest.mark.slow
async def test_a_thousand_jobs_and_a_thousand_broken_streams_leave_nothing_in_the_daemon(daemon: Daemon) -> None:
    async with daemon.client() as client:
        await client.whoami()
        async with asyncio.timeout(30):
            while (before := Holding.of(daemon.pid)).processes != ("(workerd-zygote)",):
                await asyncio.sleep(0.05)  # it has not got to its name yet
        await use(client, daemon.target(), WARM_UP)
        await settle(lambda: Holding.of(daemon.pid), before)
        size = resident_bytes(daemon.pid)
        await use(client, daemon.target(), COUNT)
        await settle(lambda: Holding.of(daemon.pid), before)
        grown = resident_bytes(daemon.pid) - size
        print(f"{COUNT} jobs, {COUNT} broken streams: {before}, {size / 1e6:.1f} MB, grown by {grown / 1e6:.2f} MB")
        assert grown < MAX_GROWTH_BYTES
    for path in (daemon.state / "jobs").iterdir():
        wait_unlocked(daemon.folder(path.name))
    assert "Traceback" not in daemon.errors()
    assert "error" not in daemon.errors()


async def test_jobs_and_broken_streams_leave_no_task(tmp_path: Path) -> None:
    async with daemon_in_this_process(tmp_path) as target, Client(target) as client:
        await client.whoami()
        before = tasks_by_name()
        await use(client, target, 100)
        await settle(tasks_by_name, before)
        print(f"tasks: {before}")


async def test_who_leaves_in_the_middle_of_a_long_log_is_no_fault(daemon: Daemon) -> None:
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="head", args=["-c", str(LONG_BYTES), "/dev/zero"]))
        async for _ in client.stream_log(job_id):
            pass
        await repeat(lambda: cut_a_stream(daemon.target(), job_id), 50)
        await repeat(lambda: leave_with_the_connection(daemon, job_id), 50)
        await client.whoami()
    assert "Traceback" not in daemon.errors()
    assert "exception" not in daemon.errors()
