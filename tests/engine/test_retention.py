"""Which jobs are removed by themselves, and which never are."""

import asyncio
import contextlib
import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from tests.daemon import end_jobs
from tests.engine.catalogs import Filling, draw_id, enter_many
from tests.engine.logs import ME, read_log, shell, wait_for_output
from tests.small_disk import small_disk
from tests.waiting import eventually
from workerd.engine import identity, request_keys, retention
from workerd.engine.catalog import Catalog, EndedJob
from workerd.engine.engine import Engine
from workerd.engine.errors import CatalogFailed, JobNotFound
from workerd.engine.folder import JobFolder
from workerd.engine.retention import Retention, must_go, seconds_until_next
from workerd.engine.shelf import Shelf
from workerd.engine.storage import Storage, disk_bytes
from workerd.engine.tree import parent_of

SECOND = 10**9
ENDED = [EndedJob("a", 10 * SECOND, 500), EndedJob("b", 20 * SECOND, 300), EndedJob("c", 30 * SECOND, 200)]


@pytest.mark.parametrize(
    ("storage", "others", "chosen", "wait"),
    [
        (Storage(), 10**15, [], None),
        (Storage(max_age_seconds=21), 0, ["a"], 1.0),
        (Storage(max_age_seconds=1), 0, ["a", "b", "c"], None),
        (Storage(max_total_bytes=1000), 0, [], 60.0),
        (Storage(max_total_bytes=999), 0, ["a"], 60.0),
        (Storage(max_total_bytes=1000), 600, ["a", "b"], 60.0),
        (Storage(max_total_bytes=10), 600, ["a", "b", "c"], 60.0),
        (Storage(max_total_bytes=10**6, max_age_seconds=1.5e-9), 0, ["a", "b", "c"], 60.0),
    ],
)
def test_the_jobs_that_ended_first_go_first(
    storage: Storage, others: int, chosen: list[str], wait: float | None
) -> None:
    now = 40 * SECOND
    left = [*ENDED]
    while left and must_go(left[0], others + sum(job.disk_bytes for job in left), storage, now):
        left.pop(0)
    assert [job.id for job in ENDED if job not in left] == chosen
    assert seconds_until_next(left[0] if left else None, storage, now) == wait


def test_running_jobs_are_measured_again_a_minute_after_the_last_time() -> None:
    storage = Storage(max_total_bytes=1000)
    assert seconds_until_next(None, storage, 40 * SECOND, 45.0) == 15.0
    assert seconds_until_next(None, storage, 40 * SECOND, 1000.0) == 0.1


async def removed(engine: Engine, job_id: str) -> None:
    """Wait until a job is not there any more."""
    async with asyncio.timeout(30):
        while True:
            try:
                engine.status(job_id)
            except JobNotFound:
                return
            await asyncio.sleep(0.05)


async def test_ended_jobs_grow_old_and_are_removed(tmp_path: Path) -> None:
    try:
        async with Engine(tmp_path, Storage(max_age_seconds=1)) as engine:
            running = await engine.spawn(shell("echo up; exec sleep 1000"))
            await wait_for_output(engine, running, b"up")
            ended = await engine.spawn(shell("echo over"))
            assert (await read_log(engine, ended)).stdout == b"over\n"
            await removed(engine, ended)
            page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
            assert [job.id for job in page.jobs] == [running]

            async def deleted() -> bool:
                return not list((tmp_path / "removed").iterdir())

            await eventually(deleted)
    finally:
        end_jobs(tmp_path)


async def test_a_job_that_is_damaged_while_it_runs_is_removed_when_it_is_too_old(tmp_path: Path) -> None:
    """Though no job ends that would have the keeper look again."""
    try:
        async with Engine(tmp_path, Storage(max_age_seconds=1)) as engine:
            job_id = await engine.spawn(shell("echo up; exec sleep 1000"))
            await wait_for_output(engine, job_id, b"up")
            await engine.wait_scanned()
            supervisor = parent_of(engine.status(job_id).status.pid)
            assert supervisor
            folder = engine._shelf.folder(job_id)
            with folder.journal.open("r+b") as journal:
                journal.write(b"?" * 40)
            os.kill(supervisor, signal.SIGKILL)

            async def gone() -> bool:
                return not folder.path.exists()

            await eventually(gone)
    finally:
        end_jobs(tmp_path)


async def test_the_total_is_kept_to_also_by_an_engine_that_comes_later(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        jobs = []
        for _ in range(4):
            jobs.append(await engine.spawn(shell("head -c 1000000 /dev/zero")))
            await read_log(engine, jobs[-1])
        each = disk_bytes(tmp_path / "jobs" / jobs[0])
        assert each > 1_000_000
    os.unlink(tmp_path / "catalog.sqlite")
    async with Engine(tmp_path, Storage(max_total_bytes=2 * each + each // 2)) as engine:
        await removed(engine, jobs[1])
        assert {path.name for path in (tmp_path / "jobs").iterdir()} == set(jobs[2:])
        assert len((await read_log(engine, jobs[2])).stdout) == 1_000_000


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """A shelf of its own, without jobs."""
    (tmp_path / "state").mkdir()
    identity.establish(tmp_path / "state" / "spool")
    request_keys.establish(tmp_path / "state" / "request-keys", tmp_path / "state" / "jobs")
    with Shelf(tmp_path / "state") as shelf:
        yield shelf


class Remover:
    """Removes folders, but for some that cannot be removed."""

    def __init__(self, stuck: Collection[str] = ()) -> None:
        self.stuck = stuck
        self.asked: list[str] = []

    async def remove(self, folder: JobFolder) -> None:
        self.asked.append(folder.path.name)
        if folder.path.name in self.stuck:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder.path))
        shutil.rmtree(folder.path)


def enter(shelf: Shelf, seed: int, count: int, disk_bytes: int) -> list[str]:
    """Enter jobs that have ended, in this order, each with a folder."""
    source = random.Random(seed)
    now = time.time_ns()
    rows = [(draw_id(source), "", now + number, now + number, disk_bytes) for number in range(count)]
    for row in rows:
        (shelf.jobs / row[0]).mkdir()
    enter_many(shelf.catalog_file, rows)
    return [row[0] for row in rows]


async def test_a_damaged_job_goes_by_its_age_and_by_the_total_like_any_other(shelf: Shelf, seed: int) -> None:
    old, large, last = (draw_id(random.Random(seed + number)) for number in range(3))
    now = time.time_ns()
    for job_id, changed_ns in ((old, 5), (large, now - SECOND), (last, now)):
        (shelf.jobs / job_id).mkdir()
        shelf.catalog.mark_damaged(job_id, "", changed_ns, 1000)
    remover = Remover()
    wait = await Retention(shelf, Storage(max_age_seconds=3600), remover.remove).remove_what_must_go()
    assert remover.asked == [old]
    assert wait == pytest.approx(3599, abs=30)
    await Retention(shelf, Storage(max_total_bytes=1000), remover.remove).remove_what_must_go()
    assert remover.asked == [old, large]
    assert [job.id for job in shelf.catalog.ended()] == [last]


async def test_a_job_that_cannot_be_removed_keeps_none_of_the_others_and_none_goes_for_it(
    shelf: Shelf, seed: int
) -> None:
    ids = enter(shelf, seed, 5, 1000)
    remover = Remover(stuck=ids[:1])
    retention = Retention(shelf, Storage(max_total_bytes=3000), remover.remove)
    assert await retention.remove_what_must_go() == pytest.approx(30, abs=5), "it is tried again"
    assert remover.asked == ids[:2]
    assert [job.id for job in shelf.catalog.ended()] == [ids[0], *ids[2:]]
    await retention.remove_what_must_go()
    assert remover.asked == ids[:2], "not tried again at each end of a job"


async def test_a_job_whose_folder_was_deleted_by_hand_is_forgotten(shelf: Shelf, seed: int) -> None:
    """Or its bytes would count for ever, and others would go for them."""
    ids = enter(shelf, seed, 4, 1000)
    shutil.rmtree(shelf.jobs / ids[0])
    await Retention(shelf, Storage(max_total_bytes=2000), Remover().remove).remove_what_must_go()
    assert [job.id for job in shelf.catalog.ended()] == ids[2:]


async def test_no_more_goes_than_must_though_users_remove_jobs_at_the_same_time(shelf: Shelf, seed: int) -> None:
    ids = enter(shelf, seed, 200, 1000)

    class Helped(Remover):
        async def remove(self, folder: JobFolder) -> None:
            await super().remove(folder)
            if len(self.asked) == 1:
                for job_id in ids[100:]:
                    shelf.catalog.remove(job_id)

    remover = Helped()
    await Retention(shelf, Storage(max_total_bytes=100_000), remover.remove).remove_what_must_go()
    assert remover.asked == ids[:1]


async def test_running_jobs_are_measured_once_a_minute_and_not_at_each_end(
    shelf: Shelf, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(folder: Path) -> int:
        measured.append(folder.name)
        return 5000

    monkeypatch.setattr("workerd.engine.retention.disk_bytes", measure)
    ids = enter(shelf, seed, 3, 1000)
    running = Filling(seed + 1, 300).specs
    for spec in running:
        shelf.catalog.add(spec)
    retention = Retention(shelf, Storage(max_total_bytes=300 * 5000 + 1500), Remover().remove)
    for _ in range(5):
        await retention.remove_what_must_go()
    assert sorted(measured) == sorted(spec.id for spec in running)
    assert shelf.catalog.total_bytes() == 300 * 5000 + 1000
    assert [job.id for job in shelf.catalog.ended()] == ids[2:]
    shelf.catalog.mark_ended(running[0], time.time_ns(), 10)
    assert shelf.catalog.total_bytes() == 299 * 5000 + 1010, "a job that has ended does not count twice"


async def test_a_running_job_whose_folder_cannot_be_read_does_not_keep_old_ones(shelf: Shelf, seed: int) -> None:
    ids = enter(shelf, seed, 2, 1000)
    spec = Filling(seed + 1).specs[0]
    shelf.catalog.add(spec)
    (shelf.jobs / spec.id).touch()
    await Retention(shelf, Storage(max_total_bytes=1000), Remover().remove).remove_what_must_go()
    assert [job.id for job in shelf.catalog.ended()] == ids[1:]


async def test_the_total_is_kept_to_though_a_job_that_counts_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does whose spawn fails just when its folder is to be measured."""
    monkeypatch.setattr(Catalog, "unended", lambda _: ["00000000-0000-4000-8000-000000000000"])
    async with Engine(tmp_path, Storage(max_total_bytes=1)) as engine:
        job_id = await engine.spawn(shell("echo over"))
        await removed(engine, job_id)


def test_a_file_that_vanishes_while_it_is_measured_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `status.new` does, whenever a supervisor says where its job stands."""
    with (tmp_path / "output").open("wb") as output:
        os.posix_fallocate(output.fileno(), 0, 8192)
    size = disk_bytes(tmp_path)
    (tmp_path / "status.new").touch()
    scandir = os.scandir

    @contextlib.contextmanager
    def scan_late(path: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            found = list(entries)
        (path / "status.new").unlink()
        yield found

    monkeypatch.setattr(os, "scandir", scan_late)
    assert disk_bytes(tmp_path) == size > 0


async def test_what_was_left_half_removed_is_removed_at_the_next_start(tmp_path: Path) -> None:
    leftover = tmp_path / "removed" / "x"
    leftover.mkdir(parents=True)
    (leftover / "output").write_text("old")
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()
    assert not leftover.exists()


async def test_a_job_that_ended_since_it_was_measured_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it took as it ran could not be recorded; what it takes at its end is."""

    def fail(_: Catalog, disk_bytes: Mapping[str, int]) -> None:
        raise CatalogFailed(tmp_path, f"is full: {len(disk_bytes)} sizes cannot be recorded")

    monkeypatch.setattr(Catalog, "note_sizes", fail)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with Engine(tmp_path / "state") as engine:
        job_id = await engine.spawn(shell(f"head -c 8000000 /dev/zero; echo printed; cat {gate}"))
        await wait_for_output(engine, job_id, b"printed")
        removed: list[JobFolder] = []

        async def remove(folder: JobFolder) -> None:
            removed.append(folder)

        keeping = Retention(engine._shelf, Storage(max_total_bytes=12_000_000), remove)
        await keeping.remove_what_must_go()  # measures it
        gate.write_text("")
        await read_log(engine, job_id)
        await eventually(lambda: is_entered(engine, job_id))
        await keeping.remove_what_must_go()
    assert removed == []


async def is_entered(engine: Engine, job_id: str) -> bool:
    """Return whether the catalogue knows that a job has ended."""
    return job_id in {job.id for job in engine._shelf.catalog.ended()}


async def test_on_a_disk_that_running_jobs_filled_the_oldest_results_go_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the catalogue cannot record there what running jobs take."""
    monkeypatch.setattr(retention, "_GROWTH_SECONDS", 1.0)
    monkeypatch.setattr(retention, "_RETRY_SECONDS", 1.0)
    with small_disk(tmp_path / "disk", 64 << 20, 0):
        state = tmp_path / "disk" / "state"
        async with Engine(state, Storage(max_total_bytes=51 << 20)) as engine:
            try:
                old = [await engine.spawn(shell("head -c 10000000 /dev/zero")) for _ in range(3)]
                for job_id in old:
                    await read_log(engine, job_id)
                filling = await engine.spawn(shell("head -c 45000000 /dev/zero"))
                assert len((await read_log(engine, filling)).stdout) == 45_000_000
                page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
                assert {job.id for job in page.jobs} < {filling, *old}
            finally:
                end_jobs(state)
