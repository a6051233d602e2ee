"""Attacks that are made of very much of something: each is borne, and nobody else notices."""

import asyncio
import contextlib
import logging
import random
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import USER, Daemon, daemon_in_this_process
from tests.holding import settle, tasks_by_name
from tests.hostile.floods import ATTACKS, Attack
from tests.hostile.witness import check_log, undisturbed, when_quiet
from workerctl.client import Client

_LOG_BYTES = 8_000_000
_MAX_GROWTH_BYTES = 200_000_000
_DESCRIPTORS = 8_192

Flood = Callable[[Attack], None]


@pytest.fixture(scope="module", autouse=True)
def many_descriptors() -> Iterator[None]:
    """Take as many descriptors as the attacks need, and the daemon that they begin with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = min(_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def own_log(client: Client) -> str:
    """Run a job that leaves a log of some megabytes."""
    job_id = await client.spawn(SpawnRequest(program="head", args=["-c", str(_LOG_BYTES), "/dev/zero"]))
    async for _ in client.stream_log(job_id):
        pass
    return job_id


@pytest.mark.parametrize("flood", ATTACKS, ids=lambda flood: flood.__name__)
async def test_flood_harms_nobody(
    shared_daemon: Daemon, tmp_path: Path, seed: int, note: Callable[[str], None], flood: Flood
) -> None:
    attacker = f"mallory-{flood.__name__}"  # each with bounds that nobody has come near
    shared_daemon.pki.issue_client(attacker)
    async with shared_daemon.client(attacker) as client:
        job_id = await own_log(client)
    target = shared_daemon.target(attacker)
    async with undisturbed(shared_daemon, tmp_path) as watch:
        began = time.monotonic()
        await asyncio.to_thread(flood, Attack(target, target.tls(), random.Random(seed), job_id))
        seconds = time.monotonic() - began
    note(f"{seconds:.1f} s, {watch}")
    assert watch.grown < _MAX_GROWTH_BYTES


@contextlib.asynccontextmanager
async def faults_of_the_loop(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """See that the loop of the test has nothing to complain of."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield
    assert not complaints
    check_log("\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING))


@pytest.mark.parametrize("flood", ATTACKS, ids=lambda flood: flood.__name__)
async def test_flood_leaves_no_task(tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture, flood: Flood) -> None:
    async with faults_of_the_loop(caplog), daemon_in_this_process(tmp_path) as target:
        async with Client(target) as client:
            job_id = await own_log(client)
        before = await when_quiet(tasks_by_name)
        attack = Attack(target, target.tls(), random.Random(seed), job_id)
        flooding = asyncio.create_task(asyncio.to_thread(flood, attack))
        await flooding
        # What the job had may still have been there before.
        await settle(lambda: Counter(tasks_by_name()) - Counter(before), Counter())
    assert target.username == USER
