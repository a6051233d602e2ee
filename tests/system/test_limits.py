"""Each limit is met for real; whoever meets it is told, or cut off, and other users notice nothing."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import USER, Daemon
from tests.waiting import eventually
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.exit_codes import ExitCode

OTHER = "other"
SLEEP = SpawnRequest(program="sleep", args=["1000"])
TRUE = SpawnRequest(program="true")


def limited(tmp_path: Path, *options: str) -> Daemon:
    """A daemon with limits, that knows another user."""
    daemon = Daemon(tmp_path / "state", options)
    daemon.pki.issue_client(OTHER)
    daemon.start()
    return daemon


async def limit_met(call: Awaitable[object], limit: str) -> str:
    """Check that a call meets a limit, and return the sentence."""
    with pytest.raises(CallFailed) as caught:
        await call
    assert (caught.value.status, caught.value.reason) == (Status.RESOURCE_EXHAUSTED, ErrorReason.LIMIT_REACHED)
    assert f"({limit}): " in str(caught.value)
    return str(caught.value)


async def wait_end(client: Client, job_id: str) -> None:
    async for _ in client.stream_log(job_id):
        pass


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def test_only_so_many_jobs_run_at_once(tmp_path: Path, stack: AsyncExitStack) -> None:
    daemon = limited(tmp_path, "--max-jobs-per-user", "2", "--max-jobs", "3")
    stack.callback(daemon.close)
    mine, other = [await stack.enter_async_context(daemon.client(user)) for user in (USER, OTHER)]
    first = SpawnRequest(program="sleep", args=["1000"], request_key="first")
    jobs = [await mine.spawn(first), await mine.spawn(SLEEP)]
    await limit_met(mine.spawn(SLEEP), "max-jobs-per-user")
    assert await mine.spawn(first) == jobs[0]  # it was started long ago
    await other.spawn(SLEEP)
    await limit_met(other.spawn(SLEEP), "max-jobs")
    for _ in range(5):  # as soon as one is known to have ended, there is room, whatever the keeper has got to
        await mine.stop(jobs[-1])
        await wait_end(mine, jobs.pop())
        jobs.append(await mine.spawn(SLEEP))
        await limit_met(mine.spawn(SLEEP), "max-jobs-per-user")
    assert len(list((daemon.state / "drafts").iterdir())) == 0


@pytest.mark.parametrize("processes", ["1", "3"])
async def test_spawns_at_the_same_time_do_not_pass_the_limit(
    tmp_path: Path, stack: AsyncExitStack, processes: str
) -> None:
    daemon = limited(tmp_path, "--max-jobs-per-user", "5", "--processes", processes)
    stack.callback(daemon.close)
    clients = [await stack.enter_async_context(daemon.client()) for _ in range(8)]
    wishes = [client.spawn(SLEEP) for client in clients for _ in range(5)]
    results = await asyncio.gather(*wishes, return_exceptions=True)
    assert sum(isinstance(result, str) for result in results) == 5
    refused = [result for result in results if not isinstance(result, str)]
    assert {getattr(error, "reason", error) for error in refused} == {ErrorReason.LIMIT_REACHED}
    assert len(list((daemon.state / "jobs").iterdir())) == 5


async def test_only_so_many_jobs_start_per_second(tmp_path: Path, stack: AsyncExitStack) -> None:
    daemon = limited(tmp_path, "--max-spawns-per-second", "0.2")
    stack.callback(daemon.close)
    mine, other = [await stack.enter_async_context(daemon.client(user)) for user in (USER, OTHER)]
    keyed = SpawnRequest(program="true", request_key="first")
    job = await mine.spawn(keyed)
    await mine.spawn(TRUE)
    sentence = await limit_met(mine.spawn(TRUE), "max-spawns-per-second")
    assert "try again in " in sentence
    assert await mine.spawn(keyed) == job
    await other.spawn(TRUE)


async def test_arguments_are_only_so_many_and_so_long(tmp_path: Path, stack: AsyncExitStack) -> None:
    daemon = limited(tmp_path, "--max-arguments", "10", "--max-argument-bytes", "1000")
    stack.callback(daemon.close)
    client = await stack.enter_async_context(daemon.client())
    await client.spawn(SpawnRequest(program="true", args=["x"] * 10))
    sentence = await limit_met(client.spawn(SpawnRequest(program="true", args=["x"] * 11)), "max-arguments")
    assert "11 arguments" in sentence
    assert "set --max-arguments of workerd higher" in sentence
    await limit_met(client.spawn(SpawnRequest(program="true", envs={"X": "x" * 1000})), "max-argument-bytes")


async def test_a_request_is_only_so_long(tmp_path: Path, stack: AsyncExitStack) -> None:
    daemon = limited(tmp_path, "--max-request-bytes", "100000")
    stack.callback(daemon.close)
    client = await stack.enter_async_context(daemon.client())
    await client.spawn(SpawnRequest(program="true", args=["x" * 90_000]))
    sentence = await limit_met(client.spawn(SpawnRequest(program="true", args=["x" * 100_000])), "max-request-bytes")
    assert "100000 bytes at most" in sentence
    await client.whoami()


async def test_only_so_many_streams_are_open(tmp_path: Path, stack: AsyncExitStack) -> None:
    daemon = limited(tmp_path, "--max-streams-per-user", "2", "--max-streams", "3")
    stack.callback(daemon.close)
    mine, other = [await stack.enter_async_context(daemon.client(user)) for user in (USER, OTHER)]
    talk = SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"])
    my_job, other_job = await mine.spawn(talk), await other.spawn(talk)

    async def follow(client: Client, job: str, held: AsyncExitStack) -> None:
        log = await held.enter_async_context(aclosing(client.stream_log(job)))
        await anext(log)

    async with AsyncExitStack() as followers:
        for _ in range(2):
            await follow(mine, my_job, followers)
        await limit_met(follow(mine, my_job, followers), "max-streams-per-user")
        await mine.status(my_job)  # which is no stream
        await follow(other, other_job, followers)
        await limit_met(follow(other, other_job, followers), "max-streams")
    async with AsyncExitStack() as followers:

        async def has_room() -> bool:
            try:
                await follow(mine, my_job, followers)
            except CallFailed:
                return False
            return True

        await eventually(has_room)


def test_the_client_does_not_try_again_what_meets_a_limit(tmp_path: Path) -> None:
    daemon = limited(tmp_path, "--max-jobs-per-user", "1")
    try:
        assert daemon.workerctl("spawn", "--", "sleep", "1000").returncode == 0
        begun = time.monotonic()
        result = daemon.workerctl("--retry-seconds", "30", "spawn", "--", "sleep", "1000")
        assert time.monotonic() - begun < 10
        assert result.returncode == ExitCode.FAILED
        assert result.stderr.decode() == (
            "workerctl: 1 jobs of yours run, and no more may (max-jobs-per-user): let one end, or stop one\n"
        )
        assert daemon.workerctl("spawn", "--", "true", user=OTHER).returncode == 0
    finally:
        daemon.close()


async def test_the_client_tells_why_its_connection_was_closed(tmp_path: Path, stack: AsyncExitStack) -> None:
    daemon = limited(tmp_path, "--max-connections-per-user", "1")
    stack.callback(daemon.close)
    client = await stack.enter_async_context(daemon.client())
    await client.whoami()
    result = await asyncio.to_thread(daemon.workerctl, "--retry-seconds", "0", "whoami")
    assert result.returncode == ExitCode.FAILED
    assert b"you have as many connections as may be, 1 (max-connections-per-user): close some" in result.stderr
    waiting = asyncio.create_task(asyncio.to_thread(daemon.workerctl, "whoami"))
    await asyncio.sleep(1.0)
    await client.aclose()
    assert (await waiting).returncode == 0  # which passes by itself: it has tried again


async def test_a_limit_that_is_met_all_the_time_does_not_fill_the_log(tmp_path: Path, stack: AsyncExitStack) -> None:
    daemon = limited(tmp_path, "--max-arguments", "1")
    stack.callback(daemon.close)
    client = await stack.enter_async_context(daemon.client())
    for _ in range(50):
        await limit_met(client.spawn(SpawnRequest(program="true", args=["x", "y"])), "max-arguments")
    assert daemon.errors().count("limit=max-arguments") == 1


@pytest.mark.parametrize("way", ["option", "environment", "file"])
def test_a_limit_can_be_set_in_each_way_and_one_that_cannot_be_is_told(tmp_path: Path, way: str) -> None:
    file = tmp_path / "workerd.toml"
    file.write_text("max-request-bytes = 5\n")
    options = {"option": ["--max-request-bytes", "5"], "file": ["--config", str(file)]}.get(way, [])
    result = subprocess.run(
        [sys.executable, "-m", "workerd", "--state-dir", str(tmp_path / "state"), *options],
        capture_output=True,
        check=False,
        env={**os.environ, **({"WORKERD_MAX_REQUEST_BYTES": "5"} if way == "environment" else {})},
        text=True,
        timeout=60,
    )
    setting = f"{file}: max-request-bytes" if way == "file" else "--max-request-bytes"
    problem = f"workerd: {setting} 5 cannot be: give 1024 or more\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", problem)
