"""A limited number of jobs is started, or ended, at once: those that wait have nothing open."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import end_jobs
from tests.engine.logs import shell
from tests.waiting import LIMIT_SECONDS, eventually
from workerd.engine import spawner, tree
from workerd.engine.admission import JobLimits
from workerd.engine.engine import Engine
from workerd.engine.errors import NoAnswer
from workerd.engine.job import Lost
from workerd.engine.keeper import Keeper
from workerd.engine.launcher import Launcher

LIMITS = JobLimits(max_starting=2)
JOBS = 7


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine that starts two jobs and ends one lost job at once."""
    async with Engine(tmp_path, limits=LIMITS) as engine:
        yield engine
    end_jobs(tmp_path)


def open_locks(state: Path) -> int:
    """Count the journals that this process has open, each of which holds a job's lock."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith(f"{state}/jobs") for link in links if os.path.lexists(link))


class Gathering:
    """Stands before a step of several tasks, and counts how many locks are held while they are let through."""

    def __init__(self, state: Path, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.most = 0
        step = getattr(owner, name)

        async def count(*arguments: Any, **options: Any) -> Any:
            await asyncio.sleep(0.05)  # in which the others would come, too
            self.most = max(self.most, open_locks(state))
            return await step(*arguments, **options)

        patch.setattr(owner, name, count)


async def test_spawns_wait_for_their_turn_with_nothing_open(
    limited: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = Gathering(tmp_path, monkeypatch, Launcher, "launch")
    async with asyncio.timeout(LIMIT_SECONDS):
        jobs = await asyncio.gather(*(limited.spawn(shell("true")) for _ in range(JOBS)))
    assert len(set(jobs)) == JOBS
    assert gathering.most == LIMITS.max_starting


async def test_a_spawn_whose_turn_does_not_come_never_runs(
    limited: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = asyncio.Event()
    launch = Launcher.launch

    async def wait(*arguments: Any) -> None:
        await may_go_on.wait()
        await launch(*arguments)

    monkeypatch.setattr(Launcher, "launch", wait)
    monkeypatch.setattr(spawner, "START_SECONDS", 0.2)
    stuck = [asyncio.ensure_future(limited.spawn(shell("true"))) for _ in range(LIMITS.max_starting)]
    await asyncio.sleep(0)
    with pytest.raises(NoAnswer, match="starting the jobs before this one"):
        await limited.spawn(shell("true"))
    may_go_on.set()
    assert set(await asyncio.gather(*stuck)) == set(os.listdir(tmp_path / "jobs"))


async def test_lost_jobs_wait_for_their_turn_with_nothing_open(
    limited: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [await limited.spawn(shell("exec sleep 1000")) for _ in range(JOBS)]
    supervisors = [tree.parent_of(limited.status(job_id).status.pid) for job_id in jobs]
    gathering = Gathering(tmp_path, monkeypatch, Keeper, "_recover")
    for supervisor in supervisors:
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)

    async def all_lost() -> bool:
        ends = [limited.status(job_id).status.end for job_id in jobs]
        return all(end is not None and isinstance(end.cause, Lost) for end in ends)

    await eventually(all_lost)
    assert gathering.most == LIMITS.max_ending


async def test_a_job_with_an_end_waits_for_no_lost_job(limited: Engine) -> None:
    assert limited.keeper is not None
    async with limited.keeper._turns:  # as lost jobs keep them whose processes no signal ends
        job_id = await limited.spawn(shell("true"))

        async def is_entered() -> bool:
            return job_id in {job.id for job in limited._shelf.catalog.ended()}

        await eventually(is_entered)
