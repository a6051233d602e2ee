"""Much output, many readers, and the smallest jobs, through the whole way."""

import asyncio
import contextlib
import hashlib
import subprocess
from pathlib import Path

import pytest
from worker_api.worker.v1 import JobEnd, SpawnRequest

from tests.daemon import Daemon
from workerctl.events import Output

SIZE = 500_000_000


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twice_half_a_gigabyte_at_once_arrives_unaltered(shared_daemon: Daemon, tmp_path: Path) -> None:
    """Random bytes on both streams; the job itself writes down what it wrote, with tee."""
    out, err = tmp_path / "out", tmp_path / "err"
    script = f"""
        head -c {SIZE} /dev/urandom | tee {out}.sent & head -c {SIZE} /dev/urandom | tee {err}.sent >&2 & wait
    """
    with out.open("wb") as stdout, err.open("wb") as stderr:
        run = subprocess.run(
            shared_daemon.command("run", "--", "sh", "-c", script),
            stdout=stdout,
            stderr=stderr,
            timeout=280,
            check=False,
        )
    assert run.returncode == 0
    for received in (out, err):
        assert received.stat().st_size == SIZE
        assert digest_of_file(received) == digest_of_file(received.with_name(received.name + ".sent"))
    for path in tmp_path.iterdir():
        path.unlink()


async def test_a_hundred_followers_over_ten_connections_get_every_byte(shared_daemon: Daemon) -> None:
    script = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    clients = [shared_daemon.client() for _ in range(10)]
    job_id = await clients[0].spawn(SpawnRequest(program="sh", args=["-c", script]))

    async def follow(number: int) -> list[tuple[int, bytes]]:
        received: list[tuple[int, bytes]] = []
        async for event in clients[number % 10].stream_log(job_id):
            if isinstance(event, Output):
                received += [(event.stream, bytes([byte])) for byte in event.data]
        assert isinstance(event, JobEnd)
        return received

    logs = await asyncio.gather(*(follow(number) for number in range(100)))
    for client in clients:
        await client.aclose()
    assert all(log == logs[0] for log in logs)
    assert b"".join(byte for stream, byte in logs[0] if stream == 1) == b"".join(b"out %d\n" % i for i in range(500))
    assert b"".join(byte for stream, byte in logs[0] if stream == 2) == b"".join(b"err %d\n" % i for i in range(500))


def test_two_hundred_jobs_at_once_over_one_connection(shared_daemon: Daemon) -> None:
    async def all_of_them() -> set[str]:
        async with shared_daemon.client() as client:
            wish = SpawnRequest(program="true")
            return set(await asyncio.gather(*(client.spawn(wish) for _ in range(200))))

    assert len(asyncio.run(all_of_them())) == 200


async def test_a_client_that_follows_many_jobs_can_still_stop_them(shared_daemon: Daemon) -> None:
    """On one connection, where HTTP/2 has calls wait when there are too many."""
    async with shared_daemon.client() as client, contextlib.AsyncExitStack() as stack:
        job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
        followers = [
            await stack.enter_async_context(contextlib.aclosing(client.stream_log(job_id))) for _ in range(200)
        ]
        for follower in followers:
            await stack.enter_async_context(contextlib.aclosing(follower))
            assert isinstance(await anext(follower), Output)
        await asyncio.wait_for(client.stop(job_id), 30)
        for follower in followers:
            assert isinstance(await anext(follower), JobEnd)


async def test_readers_that_leave_early_take_nothing_of_the_connection_with_them(shared_daemon: Daemon) -> None:
    """What was received and not read counts as read, or HTTP/2's flow control would hold the others up."""
    async with shared_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="head", args=["-c", "2000000", "/dev/zero"]))
        async with asyncio.timeout(60):
            for _ in range(200):
                async with contextlib.aclosing(client.stream_log(job_id)) as events:
                    await anext(events)
            received = [event async for event in client.stream_log(job_id)]
    assert sum(len(event.data) for event in received if isinstance(event, Output)) == 2_000_000
