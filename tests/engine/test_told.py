"""Who wants to be told of jobs' ends is: of each, once, whatever happens in between."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon import end_jobs
from tests.engine.logs import ME, read_log, shell, wait_for_output
from tests.waiting import eventually
from workerd.engine.engine import Engine
from workerd.engine.errors import ProgramNotFound
from workerd.engine.folder import JobFolder
from workerd.engine.job import Exited, JobEnd, JobSpec, Lost
from workerd.engine.journal import Told, encode
from workerd.engine.request import SpawnRequest
from workerd.engine.storage import Storage
from workerd.engine.tree import parent_of


class Listener:
    """Notes what it is told; it may be unable to."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, JobEnd]] = []
        self.removed: list[str] = []
        self.failures = 0
        self.fails = False

    def on_end(self, spec: JobSpec, end: JobEnd) -> None:
        self._work()
        self.ends.append((spec.id, end))

    def on_remove(self, job_id: str) -> None:
        self._work()
        self.removed.append(job_id)

    def ids(self) -> list[str]:
        return [job_id for job_id, _ in self.ends]

    def _work(self) -> None:
        if self.fails:
            self.failures += 1
            raise RuntimeError("there is no room to note it")

    async def told(self) -> bool:
        return bool(self.ends)

    async def failed(self) -> bool:
        return bool(self.failures)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
async def listener(state: Path) -> AsyncIterator[Listener]:
    yield Listener()
    end_jobs(state)


def engine(state: Path, listener: Listener, storage: Storage | None = None, *, keeps: bool = True) -> Engine:
    return Engine(state, storage or Storage(), keeps=keeps, on_end=listener.on_end, on_remove=listener.on_remove)


async def run(engine: Engine, script: str = "exit 3") -> str:
    """Run a job to its end."""
    job_id = await engine.spawn(shell(script))
    await read_log(engine, job_id)
    return job_id


async def drained(state: Path, listener: Listener, storage: Storage | None = None) -> None:
    """Run an engine until it has seen to every job that is there."""
    async with engine(state, listener, storage) as running:
        assert running.keeper is not None
        (state / "drain").touch()
        await asyncio.wait_for(running.keeper.wait_drained(), 60)


async def test_the_end_of_a_job_is_told_once_with_what_it_is(state: Path, listener: Listener) -> None:
    async with engine(state, listener) as running:
        job_id = await run(running)
        await eventually(listener.told)
    for _ in range(2):
        await drained(state, listener)
    [(told, end)] = listener.ends
    assert (told, end.cause) == (job_id, Exited(3))
    assert JobFolder(state / "jobs" / job_id).read().is_told


async def test_it_is_not_told_again_when_the_catalogue_is_gone(state: Path, listener: Listener) -> None:
    async with engine(state, listener) as running:
        job_id = await run(running)
        await eventually(listener.told)
        for path in state.glob("catalog.sqlite*"):
            path.unlink()
        page = await running.list_jobs(ME.id, states=(), name="", size=10, after=None)  # the keeper has looked anew
        assert [job.id for job in page.jobs] == [job_id]
    (state / "catalog.sqlite").unlink()
    await drained(state, listener)
    assert listener.ids() == [job_id]


async def test_the_end_of_a_job_that_ended_while_no_engine_ran_is_told(state: Path, listener: Listener) -> None:
    gate = state.with_name("gate")
    os.mkfifo(gate)
    async with engine(state, listener) as running:
        job_id = await running.spawn(shell(f"read line <{gate}; exit 4"))
    gate.write_text("go\n")
    await drained(state, listener)
    [(told, end)] = listener.ends
    assert (told, end.cause) == (job_id, Exited(4))


async def test_the_end_of_a_job_that_was_lost_is_told(state: Path, listener: Listener) -> None:
    async with engine(state, listener) as running:
        job_id = await running.spawn(shell("echo ready; exec sleep 1000"))
        await wait_for_output(running, job_id, b"ready")
        supervisor = parent_of(running.status(job_id).status.pid)
        assert supervisor
        os.kill(supervisor, signal.SIGKILL)
        await eventually(listener.told)
    [(told, end)] = listener.ends
    assert told == job_id and isinstance(end.cause, Lost)


async def test_what_never_ran_has_no_end_to_be_told(state: Path, listener: Listener) -> None:
    async with engine(state, listener) as running:
        with pytest.raises(ProgramNotFound):
            await running.spawn(SpawnRequest(owner=ME, program="no-such-program"))
    await drained(state, listener)
    assert listener.ends == []


async def test_an_end_that_cannot_be_told_is_told_later(
    state: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workerd.engine.keeper._PAUSES_SECONDS", (0.05,))
    listener.fails = True
    async with engine(state, listener) as running:
        job_id = await run(running)
        await eventually(listener.failed)
        listener.fails = False
        await eventually(listener.told)
    await drained(state, listener)
    assert listener.ids() == [job_id]


async def test_an_end_that_could_not_be_told_is_told_by_the_next_engine(state: Path, listener: Listener) -> None:
    listener.fails = True
    async with engine(state, listener) as running:
        job_id = await run(running)
        await eventually(listener.failed)
    listener.fails = False
    await drained(state, listener)
    assert listener.ids() == [job_id]


async def test_an_end_is_told_again_if_it_is_not_known_that_it_was(state: Path, listener: Listener) -> None:
    """The engine was killed after it had told of it, and before it could note so."""
    async with engine(state, listener) as running:
        job_id = await run(running)
        await eventually(listener.told)
    folder = JobFolder(state / "jobs" / job_id)
    os.truncate(folder.journal, folder.read().size - len(encode(Told(), job_id, 0)))
    assert not folder.read().is_told
    for path in state.glob("catalog.sqlite*"):
        path.unlink()
    await drained(state, listener)
    assert listener.ids() == [job_id, job_id]


async def test_a_job_that_is_removed_at_once_is_told_of_first(state: Path, listener: Listener) -> None:
    """By an engine without a keeper, as in another process, and not by the keeper again."""
    async with engine(state, listener) as keeping, engine(state, listener, keeps=False) as other:
        ids = [await keeping.spawn(shell("exit 3")) for _ in range(10)]
        for job_id in ids:
            await read_log(other, job_id)
            await other.remove(job_id)
    assert sorted(listener.ids()) == sorted(ids)


async def test_a_job_whose_end_cannot_be_told_is_not_removed(state: Path, listener: Listener) -> None:
    listener.fails = True
    async with engine(state, listener) as running:
        job_id = await run(running)
        with pytest.raises(RuntimeError, match="no room to note it"):
            await running.remove(job_id)
        assert running.status(job_id).ended
        listener.fails = False
        await running.remove(job_id)
    assert listener.ids() == [job_id]


async def test_what_is_removed_for_its_age_is_told(state: Path, listener: Listener) -> None:
    async with engine(state, listener) as running:
        ids = [await run(running) for _ in range(3)]
    async with engine(state, listener, Storage(max_age_seconds=0.1)):

        async def removed() -> bool:
            return len(listener.removed) == 3

        await eventually(removed)
    assert sorted(listener.removed) == sorted(listener.ids()) == sorted(ids)


async def test_jobs_are_removed_for_their_age_though_that_cannot_be_told(state: Path, listener: Listener) -> None:
    """They take the room that telling may need."""
    async with engine(state, listener) as running:
        await run(running)
        await eventually(listener.told)
    listener.fails = True
    async with engine(state, listener, Storage(max_age_seconds=0.1)):

        async def gone() -> bool:  # and both its end and its removal were tried to be told
            return not os.listdir(state / "jobs") and listener.failures == 2

        await eventually(gone)
    assert listener.removed == []


async def test_a_job_of_an_engine_that_told_nobody_is_told_of_when_it_is_found(state: Path, listener: Listener) -> None:
    async with Engine(state) as silent:
        job_id = await run(silent)
    assert not JobFolder(state / "jobs" / job_id).read().is_told
    shutil.copytree(state, state.with_name("copy"), ignore=shutil.ignore_patterns("catalog*", "control", "lock"))
    await drained(state.with_name("copy"), listener)
    assert listener.ids() == [job_id]
