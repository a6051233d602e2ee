"""Which jobs are removed by themselves, and which never are."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import end_jobs
from tests.engine.logs import ME, read_log, shell, wait_for_output
from tests.waiting import eventually
from workerd.engine.catalog import Catalog, EndedJob
from workerd.engine.engine import Engine
from workerd.engine.errors import JobNotFound
from workerd.engine.retention import choose_removals, seconds_until_next
from workerd.engine.storage import Storage, disk_bytes

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
    assert choose_removals(ENDED, others, storage, now) == chosen
    assert seconds_until_next(ENDED[len(chosen) :], storage, now) == wait


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
