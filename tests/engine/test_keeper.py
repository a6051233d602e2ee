"""Several engines under one keeper, and what becomes of spawns whose zygote or engine goes away."""

import asyncio
import os
import resource
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncinotify
import pytest
import structlog.testing

from tests.daemon import end_jobs
from tests.engine.logs import ME, read_log, shell, wait_for_output
from tests.waiting import eventually
from workerd.engine.catalog import Catalog
from workerd.engine.engine import Engine
from workerd.engine.errors import CannotStart, CatalogBusy, CatalogFailed, Draining, ProgramNotFound
from workerd.engine.folder import JobFolder
from workerd.engine.job import DamagedJob, JobSpec, JobState, JobStatus, Lost, Stream
from workerd.engine.journal import JournalWriter, Stated, Supervised
from workerd.engine.keeper import Keeper
from workerd.engine.record import RECORD_SIZE
from workerd.engine.request import SpawnRequest
from workerd.engine.spool import SpoolWriter
from workerd.engine.storage import DEFAULT_STORAGE
from workerd.engine.tree import parent_of


@pytest.fixture
async def engines(tmp_path: Path) -> AsyncIterator[list[Engine]]:
    """Engines without keepers, under one keeper."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(Keeper(tmp_path))
        yield [await stack.enter_async_context(Engine(tmp_path, keeps=False)) for _ in range(3)]
    end_jobs(tmp_path)


def zygote(engine: Engine) -> int:
    assert engine._launcher._zygote is not None
    return engine._launcher._zygote.pid


async def wait_claimed(state: Path) -> str:
    """Wait until a job has its folder, and return its id."""
    with asyncinotify.Inotify() as news:
        news.add_watch(state / "jobs", asyncinotify.Mask.MOVED_TO)
        while not (names := os.listdir(state / "jobs")):
            await news.get()
    return names[0]


async def wait_removed(path: Path) -> None:
    """Wait until a folder has gone."""
    with asyncinotify.Inotify() as news:
        news.add_watch(path.parent, asyncinotify.Mask.MOVED_FROM)
        while path.exists():
            await news.get()


async def test_any_engine_tells_stops_and_reads_what_another_started(engines: list[Engine]) -> None:
    first, second, third = engines
    job_id = await first.spawn(shell("echo ready; exec sleep 1000"))
    await wait_for_output(second, job_id, b"ready")
    assert (await second.stop(job_id, ME, 0)).status.state in (JobState.STOPPING, JobState.ENDED)
    assert (await read_log(third, job_id)).stdout == b"ready\n"
    page = await third.list_jobs(ME.id, states=(), name="", size=10, after=None)
    assert [job.id for job in page.jobs] == [job_id]


async def test_the_keeper_ends_a_job_that_an_engine_started(engines: list[Engine]) -> None:
    job_id = await engines[0].spawn(shell("echo ready; exec sleep 1000"))
    await wait_for_output(engines[1], job_id, b"ready")
    supervisor = parent_of(engines[1].status(job_id).status.pid)
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    end = (await read_log(engines[2], job_id)).end
    assert end is not None
    assert isinstance(end.cause, Lost)


async def test_the_keeper_finds_what_inotify_could_not_tell(
    tmp_path: Path, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue overflows while the loop is held up; the job in the middle is lost only if the keeper saw it."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    job_id = await engines[0].spawn(shell("echo ready; exec sleep 1000"))
    await wait_for_output(engines[1], job_id, b"ready")
    monkeypatch.setattr(Keeper, "_guard", lambda *_: None)
    other = await engines[0].spawn(shell("echo ready; exec sleep 1000"))
    await wait_for_output(engines[1], other, b"ready")
    monkeypatch.undo()
    for number in range(limit // 2 + 10):  # names differ, so that no event is merged with the one before
        (tmp_path / f"{number}").touch()
        (tmp_path / f"{number}").unlink()
    supervisor = parent_of(engines[1].status(other).status.pid)
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    end = (await asyncio.wait_for(read_log(engines[2], other), 60)).end
    assert end is not None
    assert isinstance(end.cause, Lost)


async def test_one_key_in_several_engines_at_once_starts_one_job(engines: list[Engine], tmp_path: Path) -> None:
    for number in range(10):
        request = shell(f"echo once >> {tmp_path}/count{number}", request_key=f"k{number}")
        ids = await asyncio.gather(*(engine.spawn(request) for engine in engines))
        assert len(set(ids)) == 1
        await read_log(engines[0], ids[0])
        assert (tmp_path / f"count{number}").read_text() == "once\n"


async def test_a_failing_key_in_several_engines_at_once_fails_in_each_and_leaves_nothing(
    engines: list[Engine], tmp_path: Path
) -> None:
    for number in range(10):
        request = SpawnRequest(owner=ME, program="no-such-program", request_key=f"k{number}")
        failures = await asyncio.gather(*(engine.spawn(request) for engine in engines), return_exceptions=True)
        assert [type(failure) for failure in failures] == [ProgramNotFound] * len(engines)
        assert list((tmp_path / "jobs").iterdir()) == []
        assert list((tmp_path / "drafts").iterdir()) == []


async def test_a_spawn_of_an_engine_that_was_killed_is_cleared_away_and_its_key_starts_anew(
    engines: list[Engine], tmp_path: Path
) -> None:
    """The folder is there, its lock is let go, and nothing was executed."""
    request = shell("echo now", request_key="k")
    os.kill(zygote(engines[0]), signal.SIGSTOP)
    spawning = asyncio.create_task(engines[0].spawn(request))
    job_id = await wait_claimed(tmp_path)
    again = asyncio.create_task(engines[1].spawn(request))
    (task,) = engines[0]._spawner._spawning.values()
    task.task.cancel()  # its descriptors are closed, as when its process ends
    os.kill(zygote(engines[0]), signal.SIGKILL)
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert await asyncio.wait_for(again, 30) == job_id
    assert (await read_log(engines[2], job_id)).stdout == b"now\n"


async def jobs_made(state: Path, count: int) -> None:
    """Wait until so many jobs have their folders."""

    async def made() -> bool:
        return len(os.listdir(state / "jobs")) >= count

    await eventually(made)


async def test_a_spawn_in_the_hands_of_a_killed_zygote_is_made_once(engines: list[Engine], tmp_path: Path) -> None:
    first = await engines[0].spawn(shell("echo ready; exec sleep 1000"))
    old = zygote(engines[0])
    os.kill(old, signal.SIGSTOP)
    requests = [shell(f"echo once >> {tmp_path}/count{number}", request_key=f"k{number}") for number in range(5)]
    spawning = [asyncio.create_task(engines[0].spawn(request)) for request in requests]
    await jobs_made(tmp_path, 1 + len(requests))
    os.kill(old, signal.SIGKILL)
    for job_id in await asyncio.wait_for(asyncio.gather(*spawning), 30):
        await read_log(engines[1], job_id)
    assert [(tmp_path / f"count{number}").read_text() for number in range(5)] == ["once\n"] * 5
    assert zygote(engines[0]) != old
    assert engines[1].status(first).status.state is JobState.RUNNING


async def test_more_spawns_at_once_than_a_stopped_zygote_takes_do_not_hold_up_the_engine(
    engines: list[Engine], tmp_path: Path
) -> None:
    other = await engines[0].spawn(shell("exec sleep 1000"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))  # one that waits holds its job's lock alone
    os.kill(zygote(engines[0]), signal.SIGSTOP)
    try:
        spawning = [asyncio.create_task(engines[0].spawn(SpawnRequest(owner=ME, program="nope"))) for _ in range(400)]
        await jobs_made(tmp_path, 1 + len(spawning))
        assert engines[0].status(other).status.state is JobState.RUNNING
    finally:
        os.kill(zygote(engines[0]), signal.SIGCONT)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    failures = await asyncio.wait_for(asyncio.gather(*spawning, return_exceptions=True), 60)
    assert all(isinstance(failure, CannotStart) for failure in failures)


async def test_an_engine_does_not_wait_for_a_stopped_zygote_and_the_next_one_starts_the_job_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workerd.engine.spawner._FINISH_SECONDS", 0.2)
    request = shell(f"echo once >> {tmp_path}/count", request_key="k")
    state = tmp_path / "state"
    async with Engine(state) as engine:
        old = zygote(engine)
        os.kill(old, signal.SIGSTOP)
        spawning = asyncio.create_task(engine.spawn(request))
        job_id = await wait_claimed(state)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert not Path(f"/proc/{old}").exists()
    async with Engine(state) as engine:
        assert await engine.spawn(request) == job_id
        await read_log(engine, job_id)
    assert (tmp_path / "count").read_text() == "once\n"


async def test_a_busy_catalogue_fails_no_spawn(engines: list[Engine], tmp_path: Path) -> None:
    for engine in engines:
        engine._shelf.catalog._execute("PRAGMA busy_timeout = 50")
    busy = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    busy.execute("BEGIN IMMEDIATE")
    job_id = await engines[0].spawn(shell("echo done"))
    log = asyncio.create_task(read_log(engines[0], job_id))
    busy.execute("COMMIT")
    busy.close()
    assert (await log).stdout == b"done\n"
    async with asyncio.timeout(60):
        while not (await engines[1].list_jobs(ME.id, states=(), name="", size=1, after=None)).jobs:
            await asyncio.sleep(0.01)


async def test_a_scan_that_failed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workerd.engine.keeper._PAUSES_SECONDS", (0.05,))
    mark, failures = Catalog.mark_complete, [CatalogFailed(tmp_path, "no room"), OSError("no descriptor")]

    def fail(catalog: Catalog, generation: int) -> None:
        if failures:
            raise failures.pop()
        mark(catalog, generation)

    monkeypatch.setattr(Catalog, "mark_complete", fail)
    async with Engine(tmp_path) as engine, asyncio.timeout(30):
        page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
        assert page.jobs == ()
    assert failures == []


async def test_a_job_that_a_held_catalogue_did_not_take_is_entered_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workerd.engine.keeper._PAUSES_SECONDS", (0.05,))
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("exec sleep 1000"))
    for path in tmp_path.glob("catalog.sqlite*"):
        path.unlink()
    add_found, failures = Catalog.add_found, [CatalogBusy(tmp_path, 2.0)]

    def fail(catalog: Catalog, spec: JobSpec) -> None:
        if failures:
            raise failures.pop()
        add_found(catalog, spec)

    monkeypatch.setattr(Catalog, "add_found", fail)
    async with Engine(tmp_path) as engine, asyncio.timeout(30):
        page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
        assert [job.id for job in page.jobs] == [job_id]
        await engine.stop(job_id, ME, 0)
        await read_log(engine, job_id)
    assert failures == []


async def test_a_job_that_the_catalogue_does_not_take_is_watched_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
        await wait_for_output(engine, job_id, b"ready")

    def fail(*_: object) -> None:
        raise CatalogFailed(tmp_path, "no room")

    monkeypatch.setattr(Catalog, "add_found", fail)
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()
        supervisor = parent_of(engine.status(job_id).status.pid)
        assert supervisor
        os.kill(supervisor, signal.SIGKILL)
        end = (await asyncio.wait_for(read_log(engine, job_id), 30)).end
    assert end is not None
    assert isinstance(end.cause, Lost)


async def test_a_catalogue_that_is_deleted_is_made_again_for_every_engine(
    engines: list[Engine], tmp_path: Path
) -> None:
    job_id = await engines[0].spawn(shell("exec sleep 1000"))
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"catalog.sqlite{suffix}").unlink(missing_ok=True)
    for engine in engines:
        async with asyncio.timeout(30):
            page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
        assert [job.id for job in page.jobs] == [job_id]


async def test_the_keeper_clears_away_what_a_killed_process_was_making(tmp_path: Path) -> None:
    draft = tmp_path / "drafts" / "half"
    draft.mkdir(parents=True)
    (draft / "journal").touch()
    async with Keeper(tmp_path):
        assert list((tmp_path / "drafts").iterdir()) == []


async def test_a_drain_waits_for_a_job_that_is_only_being_started(tmp_path: Path) -> None:
    """The folder came before the drain, the program after: it is waited for."""
    async with AsyncExitStack() as stack:
        keeper = await stack.enter_async_context(Keeper(tmp_path))
        engine = await stack.enter_async_context(Engine(tmp_path, keeps=False))
        os.kill(zygote(engine), signal.SIGSTOP)
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        spawning = asyncio.create_task(engine.spawn(shell(f"cat {gate}")))
        await wait_claimed(tmp_path)
        drained = asyncio.create_task(keeper.wait_drained())
        (tmp_path / "drain").touch()
        with pytest.raises(Draining):
            await engine.spawn(shell("true"))
        os.kill(zygote(engine), signal.SIGCONT)
        job_id = await spawning
        assert not drained.done()
        gate.write_text("")
        await read_log(engine, job_id)
        await asyncio.wait_for(drained, 60)


async def make_unrecoverable(state: Path) -> JobFolder:
    """Make what a supervisor left that vanished, with a log whose beginning is damaged."""
    async with Keeper(state):
        pass
    job_id = "00000000-0000-4000-8000-000000000000"
    folder = JobFolder(state / "jobs" / job_id)
    spec = shell("true", working_directory="/").specify(job_id, 1, DEFAULT_STORAGE)
    lock = folder.create(spec, "its spool", state / "spool")
    writer = JournalWriter(lock, job_id, folder.read().size)
    for entry in (Supervised(1, 0, "an earlier boot", ""), Stated(JobStatus(state=JobState.RUNNING))):
        writer.append(entry)
    os.close(lock)
    log = SpoolWriter(folder)
    for _ in range(2):
        log.append(Stream.STDOUT, memoryview(b"text"))
    log.close()
    with folder.index.open("r+b") as index:
        index.write(b"no index at all".ljust(2 * RECORD_SIZE))
    return folder


async def test_a_folder_that_cannot_be_recovered_is_told_of_once_and_holds_up_no_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workerd.engine.keeper._PAUSES_SECONDS", (0.01,))
    folder = await make_unrecoverable(tmp_path)
    with structlog.testing.capture_logs() as logs:
        async with Keeper(tmp_path) as keeper:
            await keeper.wait_scanned()
            async with asyncio.timeout(30):
                while keeper._guards:
                    await asyncio.sleep(0.01)
                (tmp_path / "drain").touch()
                await keeper.wait_drained()  # which looks through the folders again
    [error] = [entry for entry in logs if entry["log_level"] == "error"]
    assert str(folder.index) in error["error"]


async def test_a_damaged_job_that_the_catalogue_does_not_take_is_entered_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does that end the keeper."""
    monkeypatch.setattr("workerd.engine.keeper._PAUSES_SECONDS", (0.01,))
    folder = await make_unrecoverable(tmp_path)
    mark_damaged, failures = Catalog.mark_damaged, [CatalogFailed(tmp_path, "no room") for _ in range(3)]

    def fail(catalog: Catalog, job_id: str, owner_id: str, changed_ns: int, disk_bytes: int) -> None:
        if failures:
            raise failures.pop()
        mark_damaged(catalog, job_id, owner_id, changed_ns, disk_bytes)

    monkeypatch.setattr(Catalog, "mark_damaged", fail)
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()

        async def entered() -> bool:
            return next(engine._shelf.catalog.ended(), None) is not None

        await eventually(entered)
        [job] = (await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)).rows
        assert isinstance(job, DamagedJob)
        assert (job.id, job.owner) == (folder.job_id, ME)
    assert failures == []


async def test_a_drain_whose_progress_has_no_room_comes_to_its_end(tmp_path: Path) -> None:
    async with Keeper(tmp_path) as keeper:
        (tmp_path / "drain").symlink_to("/dev/full")
        await asyncio.wait_for(keeper.wait_drained(), 30)


async def test_the_next_keeper_waits_for_processes_that_a_killed_one_left(tmp_path: Path) -> None:
    """They hold the state directory, and end with the process that is named in the lock, which has gone."""
    holder = await asyncio.create_subprocess_exec("true")
    await holder.wait()
    (tmp_path / "lock").write_text(str(holder.pid))
    orphan = await asyncio.create_subprocess_exec("flock", str(tmp_path / "lock"), "sleep", "0.3")
    while not Path(f"/proc/{orphan.pid}/task/{orphan.pid}/children").read_text():
        await asyncio.sleep(0.01)
    async with Keeper(tmp_path):
        pass
    assert await orphan.wait() == 0
