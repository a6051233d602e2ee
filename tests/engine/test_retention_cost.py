"""What it costs to remove a few of very many jobs: as much as these few, and no call of others waits for it."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon import end_jobs
from tests.engine.catalogs import SECOND_NS, draw_id, enter_many
from tests.engine.logs import read_log, shell
from tests.waiting import eventually
from workerd.engine.engine import Engine
from workerd.engine.retention import Retention
from workerd.engine.storage import Storage

ENDED = 200_000
REMOVED = 10
TAKEN_UP = 20_000
EACH_BYTES = 4096
OTHERS_BYTES = 1 << 30  # room for what the real jobs take
MOST_SECONDS = 0.05

pytestmark = pytest.mark.slow


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine with very many ended jobs that it may keep, and a few real ones that ended before."""
    async with Engine(tmp_path, Storage(max_total_bytes=ENDED * EACH_BYTES + OTHERS_BYTES)) as engine:
        for _ in range(2 * REMOVED):
            await read_log(engine, await engine.spawn(shell("echo over")))
        await engine.wait_scanned()  # which takes out the rows that have no folder

        async def all_entered() -> bool:
            return not engine._shelf.catalog.unended()

        await eventually(all_entered)
        source, now = random.Random(1), time.time_ns()
        rows = ((draw_id(source), "", now + n, now + n, EACH_BYTES) for n in range(ENDED))
        enter_many(tmp_path / "catalog.sqlite", rows)
        yield engine
    end_jobs(tmp_path)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when retention has done what there was to do."""
    looked = asyncio.Event()
    look = Retention.remove_what_must_go

    async def look_and_tell(retention: Retention) -> float | None:
        wait = await look(retention)
        looked.set()
        return wait

    monkeypatch.setattr(Retention, "remove_what_must_go", look_and_tell)
    return looked


@contextlib.asynccontextmanager
async def noting_turns() -> AsyncIterator[list[float]]:
    """Note how much CPU time in seconds the event loop spends on others before a task has its turn again.

    Of the loop's own thread: what other programs and threads take at the same time does not count.
    """
    turns: list[float] = []

    async def note() -> None:
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - began)

    noting = asyncio.create_task(note())
    await asyncio.sleep(0)
    yield turns
    noting.cancel()


async def exceed(engine: Engine, state: Path, looked: asyncio.Event) -> float:
    """Let retention remove a few jobs; return the CPU time in seconds that this process takes for it."""
    assert engine.keeper is not None
    catalog = engine._shelf.catalog
    oldest = [*itertools.islice(catalog.ended(), REMOVED)]
    # As though another job had ended, which took all the room that was left, and what these few take.
    excess = ENDED * EACH_BYTES + OTHERS_BYTES - catalog.total_bytes() + sum(job.disk_bytes for job in oldest)
    now = time.time_ns()
    enter_many(state / "catalog.sqlite", [(draw_id(random.Random(2)), "", now, now + SECOND_NS, excess)])
    looked.clear()
    began = time.process_time()
    engine.keeper._job_ended.set()
    async with asyncio.timeout(60):
        await looked.wait()
    spent = time.process_time() - began
    assert not any((state / "jobs" / job.id).exists() for job in oldest)
    assert len([*(state / "jobs").iterdir()]) == REMOVED
    return spent


async def test_removing_a_few_of_very_many_jobs_costs_what_these_few_cost(
    looked: asyncio.Event, engine: Engine, tmp_path: Path
) -> None:
    assert await exceed(engine, tmp_path, looked) < MOST_SECONDS
    assert len([*engine._shelf.catalog.ended()]) == ENDED + REMOVED + 1


async def test_no_call_waits_while_a_few_of_very_many_jobs_are_removed(
    looked: asyncio.Event, engine: Engine, tmp_path: Path
) -> None:
    async with noting_turns() as turns:
        await exceed(engine, tmp_path, looked)
    assert max(turns) < MOST_SECONDS


async def test_no_call_waits_while_the_keeper_takes_up_very_many_jobs(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()
    source, now = random.Random(1), time.time_ns()
    rows = [(draw_id(source), "", now + n, now + n, EACH_BYTES) for n in range(TAKEN_UP)]
    enter_many(tmp_path / "catalog.sqlite", rows)
    for job_id, *_ in rows[: TAKEN_UP // 2]:  # the others have been deleted by hand
        (tmp_path / "jobs" / job_id).mkdir()
    async with Engine(tmp_path) as engine, noting_turns() as turns:
        await engine.wait_scanned()
        assert engine._shelf.catalog.total_bytes() == TAKEN_UP // 2 * EACH_BYTES
    assert max(turns) < MOST_SECONDS
