"""A disk that is full holds jobs up and turns new ones away, and loses nothing: when there is room all goes on."""

import asyncio
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, Gap, Job, JobEnd, JobState, SpawnRequest, Stream

from tests.daemon import Daemon, running_daemon
from tests.engine.logs import has_ended
from tests.small_disk import fill, make_room, small_disk
from tests.waiting import eventually
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.events import Output
from workerctl.exit_codes import ExitCode
from workerctl.log import LogCheck

DISK_BYTES = 24 << 20
BALLAST_BYTES = 14 << 20
PRINTED_BYTES = 16 << 20
PRINT = f"import random, sys; sys.stdout.buffer.write(random.Random(7).randbytes({PRINTED_BYTES}))"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of the test's own (tmpfs(5)), half of which is taken by the file `ballast`."""
    with small_disk(tmp_path / "disk", DISK_BYTES, BALLAST_BYTES):
        yield tmp_path / "disk"


@pytest.fixture
def small_daemon(disk: Path) -> Iterator[Daemon]:
    """A daemon that keeps its state on the small disk, and finds room again to end its jobs."""
    with running_daemon(disk / "state") as daemon:
        try:
            yield daemon
        finally:
            make_room(disk)


async def wait_held_up(client: Client, job_id: str) -> Job:
    """Wait until a job is said to be held up by the full disk."""

    async def held_up() -> bool:
        return (await client.status(job_id)).waits_for_room

    await eventually(held_up)
    return await client.status(job_id)


async def read(client: Client, job_id: str) -> bytes:
    """Read what a job prints to its standard output alone, to its end; check count and digest as workerctl does."""
    received = bytearray()
    check = LogCheck([Stream.STDOUT, Stream.STDERR], from_start=True)
    async for event in client.stream_log(job_id):
        assert not isinstance(event, Gap)
        if isinstance(event, Output):
            check.output(event)
            received += event.data
        if isinstance(event, JobEnd):
            check.end(event)
            return bytes(received)
    raise AssertionError("the log stopped before its end")


async def check_spawn_is_turned_away(client: Client, daemon: Daemon) -> None:
    with pytest.raises(CallFailed) as caught:
        await client.spawn(SpawnRequest(program="true"))
    assert (caught.value.status, caught.value.reason) == (Status.RESOURCE_EXHAUSTED, ErrorReason.RESOURCE_EXHAUSTED)
    result = await asyncio.to_thread(daemon.workerctl, "spawn", "--", "true")
    assert result.returncode == ExitCode.FAILED
    assert result.stdout == b""
    assert result.stderr.count(b"\n") == 1
    assert re.search(rb"(No space left on device|disk .*is full).*make room", result.stderr), result.stderr


async def test_what_a_job_prints_on_a_full_disk_is_whole_once_there_is_room(small_daemon: Daemon, disk: Path) -> None:
    async with small_daemon.client() as client, small_daemon.client() as follower:
        job_id = await client.spawn(SpawnRequest(program=sys.executable, args=["-c", PRINT]))
        following = asyncio.create_task(read(follower, job_id))
        held = await wait_held_up(client, job_id)
        assert held.state is JobState.RUNNING
        assert held.stdout_bytes < PRINTED_BYTES
        assert not following.done()
        make_room(disk)
        printed = random.Random(7).randbytes(PRINTED_BYTES)
        assert await asyncio.wait_for(following, 60) == printed
        job = await client.status(job_id)
        assert job.end is not None
        assert job.end.exited is not None
        assert job.end.exited.code == 0
        assert not job.waits_for_room


async def test_on_a_full_disk_spawns_are_turned_away_until_there_is_room(small_daemon: Daemon, disk: Path) -> None:
    gate = disk.parent / "gate"
    os.mkfifo(gate)
    async with small_daemon.client() as client:
        script = f"echo before; read line <{gate}; echo after"
        job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", script]))
        fill(disk)
        for _ in range(3):
            await check_spawn_is_turned_away(client, small_daemon)
        assert (await client.status(job_id)).state is JobState.RUNNING
        assert (await client.whoami()).user is not None
        await asyncio.to_thread(gate.write_text, "go\n")
        make_room(disk)
        assert await read(client, job_id) == b"before\nafter\n"
        assert await read(client, await client.spawn(SpawnRequest(program="echo", args=["works"]))) == b"works\n"
        assert (await asyncio.to_thread(small_daemon.workerctl, "spawn", "--", "true")).returncode == 0
        assert len([job async for job in client.list_jobs()]) == 3, "something is left of a job that was turned away"
    assert len(list((disk / "state" / "jobs").iterdir())) == 3


async def test_a_job_that_a_full_disk_holds_up_can_be_stopped(small_daemon: Daemon, disk: Path) -> None:
    """Its end, with everything that was taken from it, is there when there is room to write it down."""
    async with small_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="yes"))
        held = await wait_held_up(client, job_id)
        fill(disk)
        stopping = asyncio.create_task(client.stop(job_id))

        async def gone() -> bool:
            return has_ended(held.pid)

        await eventually(gone)
        make_room(disk)
        await asyncio.wait_for(stopping, 60)
        printed = await read(client, job_id)
        assert len(printed) >= held.stdout_bytes
        assert printed == (b"y\n" * (len(printed) // 2 + 1))[: len(printed)]
        job = await client.status(job_id)
        assert job.end is not None
        assert job.end.stopped is not None
