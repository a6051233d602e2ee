"""A daemon of format 2 that is killed, and today's in its place: jobs run on under the supervisors of before."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import xxhash
from worker_api.worker.v1 import JobEnd, JobState, SpawnRequest, Stream

from tests.conftest import PROGRAMS
from tests.daemon import USER, Daemon
from tests.older import OlderCode
from tests.programs import steady
from tests.waiting import LIMIT_SECONDS, eventually, wait_until
from workerctl.client import Client
from workerctl.errors import JobNotFound
from workerctl.events import Output
from workerd.engine.tree import parent_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
FRIEND, STRANGER = "anna", "bob"
COUNT = 8
CUT_AFTER_BYTES = 20_000


@pytest.fixture(params=["1", "2"], ids=["one process", "several processes"])
def old_daemon(tmp_path: Path, older: OlderCode, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon of the older code, with users."""
    daemon = Daemon(tmp_path / "state", ("--processes", request.param), prefix=older.prefix)
    for name in (FRIEND, STRANGER):
        daemon.pki.issue_client(name)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO that lets every job end that was told of it."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def upgrade(daemon: Daemon) -> None:
    """Kill a daemon, and start today's on its state directory and port."""
    daemon.listen = f"127.0.0.1:{daemon.port}"
    daemon.stop(signal.SIGKILL)
    daemon.prefix = ()
    daemon.start()


def check_format_2(daemon: Daemon, job_id: str) -> None:
    """Check that a job was started by the older daemon and is written by an older supervisor."""
    folder = daemon.state / "jobs" / job_id
    assert json.loads((folder / "spec").read_bytes())["format"] == 2
    assert (folder / "index").read_bytes()[8] == 2  # the offset of the header


def steady_job(gate: Path, seed: str, code: int = 0) -> SpawnRequest:
    """A job that prints until the gate is opened."""
    program = str(PROGRAMS / "steady.py")
    return SpawnRequest(program=sys.executable, args=["-S", program, str(gate), seed, str(code)], name=seed)


class Follower:
    """Somebody who follows a job's log from its start, over a connection of their own."""

    def __init__(self, client: Client, job_id: str, told: list[str]) -> None:
        self.job_id = job_id
        self.told = told
        self.printed = {stream: bytearray() for stream in (Stream.STDOUT, Stream.STDERR)}
        self.ends: list[JobEnd] = []
        self.task = asyncio.create_task(self._follow(client))

    async def _follow(self, client: Client) -> None:
        offset = 0
        async for event in client.stream_log(self.job_id):
            assert not self.ends
            if isinstance(event, JobEnd):
                self.ends.append(event)
                continue
            assert isinstance(event, Output)
            printed = self.printed[event.stream]
            assert (event.offset_bytes, event.stream_offset_bytes) == (offset, len(printed))
            offset += len(event.data)
            printed += event.data

    async def wait_for(self, size_bytes: int) -> None:
        """Wait until so many bytes of each stream have come."""

        async def have_come() -> bool:
            if self.task.done():
                await self.task
            return all(len(printed) >= size_bytes for printed in self.printed.values())

        await eventually(have_come)

    def check(self, seed: str, code: int) -> None:
        """Check that every byte came, once, with the right end."""
        [end] = self.ends
        assert end.exited is not None and end.exited.code == code
        summaries = {summary.stream: (summary.size_bytes, summary.xxh3_128) for summary in end.streams}
        for stream, printed in self.printed.items():
            last = re.search(rb"\nend (\d+)\n\Z", printed)
            assert last is not None
            assert printed == steady.whole(seed, stream, int(last[1]))
            assert summaries[stream] == (len(printed), xxhash.xxh3_128(printed).digest())


@contextlib.asynccontextmanager
async def following(daemon: Daemon, job_ids: list[str]) -> AsyncIterator[list[Follower]]:
    """Follow jobs, each by one follower."""
    async with contextlib.AsyncExitStack() as stack:
        followers = []
        for job_id in job_ids:
            told: list[str] = []
            client = await stack.enter_async_context(Client(daemon.target(), on_retry=told.append))
            followers.append(Follower(client, job_id, told))
            stack.callback(followers[-1].task.cancel)
        yield followers


async def test_every_follower_goes_through_the_upgrade_without_loss_or_doubling(old_daemon: Daemon, gate: Path) -> None:
    async with old_daemon.client() as client:
        jobs = {seed: await client.spawn(steady_job(gate, seed, 10 + int(seed))) for seed in map(str, range(COUNT))}
    async with following(old_daemon, [*jobs.values()]) as followers, asyncio.timeout(2 * LIMIT_SECONDS):
        for follower in followers:
            await follower.wait_for(CUT_AFTER_BYTES)
        await asyncio.to_thread(upgrade, old_daemon)
        for follower in followers:
            await follower.wait_for(min(map(len, follower.printed.values())) + CUT_AFTER_BYTES)
        await asyncio.to_thread(gate.write_text, "go\n")
        await asyncio.gather(*(follower.task for follower in followers))
    for (seed, job_id), follower in zip(jobs.items(), followers, strict=True):
        follower.check(seed, 10 + int(seed))
        assert len(follower.told) == 1 and "trying again from byte" in follower.told[0]
        check_format_2(old_daemon, job_id)


async def test_jobs_of_before_are_listed_read_and_removed_beside_new_ones(old_daemon: Daemon, gate: Path) -> None:
    async with old_daemon.client() as client:
        ended = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo out; echo err >&2; exit 3"]))
        async for _ in client.stream_log(ended):
            pass
        running = await client.spawn(steady_job(gate, "running"))
    await asyncio.to_thread(upgrade, old_daemon)
    async with old_daemon.client() as client:
        new = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo new"]))
        assert [job.id async for job in client.list_jobs()] == [new, running, ended]
        assert [job.id async for job in client.list_jobs([JobState.RUNNING])] == [running]
        assert await printed_by(client, new) == [b"new\n"]
        assert await printed_by(client, ended) == [b"out\n", b"err\n"]
        await asyncio.to_thread(gate.write_text, "go\n")
        async with following(old_daemon, [running]) as [follower]:
            await follower.task
        follower.check("running", 0)
        for job_id in (running, ended):
            check_format_2(old_daemon, job_id)
            await client.remove(job_id)
            with pytest.raises(JobNotFound):
                await client.status(job_id)
        assert [job.id async for job in client.list_jobs()] == [new]
    assert [path.name for path in (old_daemon.state / "jobs").iterdir()] == [new]


async def test_what_was_shared_and_keyed_before_still_is(old_daemon: Daemon, gate: Path) -> None:
    async with old_daemon.client(FRIEND) as friend, old_daemon.client(STRANGER) as stranger:
        for client in (friend, stranger):
            await client.whoami()
        async with old_daemon.client() as owner:
            request = steady_job(gate, "shared")
            request.request_key = "once"
            job_id = await owner.spawn(request)
            await owner.share(job_id, FRIEND, ["status", "stream-log"])
    await asyncio.to_thread(upgrade, old_daemon)
    async with (
        old_daemon.client() as owner,
        old_daemon.client(FRIEND) as friend,
        old_daemon.client(STRANGER) as stranger,
    ):
        assert await owner.spawn(request) == job_id
        shares = await owner.share(job_id)
        assert [(each.user and each.user.name, each.rights) for each in shares] == [(FRIEND, ["status", "stream-log"])]
        assert (await friend.status(job_id)).state is JobState.RUNNING
        with pytest.raises(JobNotFound):
            await stranger.status(job_id)
        assert len(await owner.share(job_id, STRANGER, ["status"])) == 2
        assert (await stranger.status(job_id)).state is JobState.RUNNING
        assert await owner.share(job_id, STRANGER) == shares
        await asyncio.to_thread(gate.write_text, "go\n")
        assert isinstance([event async for event in friend.stream_log(job_id)][-1], JobEnd)
        assert await owner.spawn(request) == job_id


async def test_a_supervisor_of_before_takes_orders_and_is_missed_when_it_is_gone(
    old_daemon: Daemon, gate: Path
) -> None:
    """Each end is told in the audit trail, once, by whichever daemon was there."""
    async with old_daemon.client() as client:
        before = await client.spawn(SpawnRequest(program="true"))
        async for _ in client.stream_log(before):
            pass
        stopped, lost = [await client.spawn(steady_job(gate, seed)) for seed in ("stopped", "lost")]
    wait_until(lambda: before in ends_in_trail(old_daemon), "the end before the upgrade is not in the trail")
    await asyncio.to_thread(upgrade, old_daemon)
    async with old_daemon.client() as client, following(old_daemon, [stopped, lost]) as followers:
        for follower in followers:
            await follower.wait_for(CUT_AFTER_BYTES)
        await client.stop(stopped)
        supervisor = parent_of((await client.status(lost)).pid)
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(*(follower.task for follower in followers)), LIMIT_SECONDS)
    [[stop_end], [lost_end]] = [follower.ends for follower in followers]
    assert stop_end.stopped is not None and stop_end.stopped.by is not None
    assert (stop_end.stopped.by.name, stop_end.stopped.signal) == (USER, signal.SIGTERM)
    assert lost_end.lost is not None
    for seed, follower in zip(("stopped", "lost"), followers, strict=True):
        check_format_2(old_daemon, follower.job_id)
        for stream, printed in follower.printed.items():
            assert printed == steady.beginning(seed, stream, len(printed))
    wait_until(lambda: len(ends_in_trail(old_daemon)) == 3, "not every end is in the trail")
    assert sorted(ends_in_trail(old_daemon)) == sorted((before, stopped, lost))
    assert old_daemon.workerctl("audit", "verify", str(old_daemon.state)).returncode == 0


async def printed_by(client: Client, job_id: str) -> list[bytes]:
    """Read what an ended job has printed to each stream."""
    printed = {Stream.STDOUT: b"", Stream.STDERR: b""}
    async for event in client.stream_log(job_id):
        if isinstance(event, Output):
            printed[event.stream] += event.data
    return [data for data in printed.values() if data]


def ends_in_trail(daemon: Daemon) -> list[str]:
    """The jobs whose ends are in the audit trail."""
    shown = daemon.workerctl("audit", "show", str(daemon.state), "--output", "json")
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    return [event["job_id"] for event in events if event["event"] == "job-ended"]
