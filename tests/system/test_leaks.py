"""Nothing is left behind: after many jobs and many broken streams the daemon holds what it held before."""

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from grpclib.exceptions import StreamTerminatedError
from worker_api.worker.v1 import JobEnd, SpawnRequest, StreamLogRequest, WorkerServiceStub

from tests.daemon import Daemon, daemon_in_this_process
from workerctl.client import Client
from workerctl.target import Target
from workerctl.transport import WorkerChannel
from workerd.engine.tree import descendants

AT_ONCE = 5
WARM_UP = 400
COUNT = 1000
MAX_GROWTH_BYTES = 10_000_000  # the allocator's; what each of them left behind would be more


@dataclass(frozen=True)
class Holding:
    """What a process holds of the machine.

    Attributes:
        processes: the names of those below it, zombies included.
    """

    descriptors: int
    watches: int
    processes: tuple[str, ...]

    @classmethod
    def of(cls, pid: int) -> "Holding":
        open_files = list(Path(f"/proc/{pid}/fdinfo").iterdir())
        watches = 0
        for file in open_files:
            with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                watches += len(re.findall(r"^inotify ", file.read_text(), re.MULTILINE))  # proc_pid_fdinfo(5)
        names = tuple(sorted(Path(f"/proc/{below}/stat").read_text().split()[1] for below, _ in descendants(pid)))
        return cls(len(open_files), watches, names)


def resident_bytes(pid: int) -> int:
    """Tell how much memory a process has in use (proc_pid_statm(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def settle(look: Callable[[], object], wanted: object) -> None:
    """Wait until what is looked at is as it was: what has been let go of may take a moment to be gone."""
    seen: object = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while seen != wanted:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    seen = look()
                await asyncio.sleep(0.05)
    assert seen == wanted


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


async def use(client: Client, target: Target, count: int) -> None:
    """Run so many jobs and break so many streams of one that runs, half of them each way."""
    job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
    await repeat(lambda: run_a_job(client), count)
    await repeat(lambda: leave_a_stream(client, job_id), count // 2)
    await repeat(lambda: cut_a_stream(target, job_id), count // 2)
    await client.stop(job_id)
    assert isinstance([event async for event in client.stream_log(job_id)][-1], JobEnd)


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
        with daemon.folder(path.name).wait_lock():  # free: its supervisor has gone
            pass
    assert "Traceback" not in daemon.errors()
    assert "error" not in daemon.errors()


def tasks_by_name() -> list[str]:
    """Name what the tasks that have not ended run."""
    return sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())


async def test_jobs_and_broken_streams_leave_no_task(tmp_path: Path) -> None:
    async with daemon_in_this_process(tmp_path) as target, Client(target) as client:
        await client.whoami()
        before = tasks_by_name()
        await use(client, target, 100)
        await settle(tasks_by_name, before)
        print(f"tasks: {before}")
