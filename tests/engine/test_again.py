"""A job that was removed and is made again with its key has the same id, and is another job for everybody."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon import end_jobs
from tests.engine.logs import log_events, read_log, shell
from workerd.engine.engine import Engine
from workerd.engine.errors import JobNotEnded, JobNotFound

ROUNDS = 5
SOON_SECONDS = 30
LOUD = "head -c 3000000 /dev/zero"  # more than is read at a time


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with Engine(tmp_path / "state") as engine:
        yield engine
    end_jobs(tmp_path / "state")


async def start(engine: Engine, script: str) -> str:
    return await engine.spawn(shell(script, request_key="again"))


async def replace(engine: Engine, script: str) -> str:
    """Remove the job, which has ended, and start another in its place."""
    job_id = await start(engine, "true")
    await engine.remove(job_id)
    assert await start(engine, script) == job_id
    return job_id


async def test_who_follows_it_is_told_of_its_output_whoever_still_reads_the_other(engine: Engine) -> None:
    job_id = await start(engine, LOUD)
    await read_log(engine, job_id)
    async with contextlib.aclosing(log_events(engine, job_id)) as other:
        await anext(other)
        await replace(engine, "for i in 1 2 3; do echo $i; sleep 0.1; done")
        async with asyncio.timeout(SOON_SECONDS):
            assert (await read_log(engine, job_id)).stdout == b"1\n2\n3\n"


async def test_who_still_reads_the_other_is_not_told_of_its_end(engine: Engine) -> None:
    job_id = await start(engine, LOUD)
    await read_log(engine, job_id)
    async with contextlib.aclosing(log_events(engine, job_id)) as other:
        await anext(other)
        await read_log(engine, await replace(engine, "exit 7"))
        with pytest.raises(JobNotFound):
            [event async for event in other]


async def test_who_was_to_remove_the_other_does_not_remove_it(engine: Engine) -> None:
    for _ in range(ROUNDS):
        job_id = await start(engine, "true")
        await read_log(engine, job_id)
        removals = [asyncio.create_task(engine.remove(job_id)) for _ in range(4)]
        await asyncio.wait(removals, return_when=asyncio.FIRST_COMPLETED)
        assert await start(engine, "sleep 0.1") == job_id
        await asyncio.wait(removals, timeout=SOON_SECONDS)
        outcomes = [removal.exception() for removal in removals]
        assert outcomes.count(None) == 1
        assert all(each is None or isinstance(each, JobNotFound | JobNotEnded) for each in outcomes)
        await read_log(engine, job_id)
        await engine.remove(job_id)
