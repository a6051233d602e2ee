"""Damaged files: what is read is what was written, or an error; and the job can be listed and removed."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.logs import ME, log_events, read_log, shell, wait_for_output
from tests.waiting import eventually, wait_unlocked
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import JobNotEnded, JobNotFound, SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import DamagedJob, Exited, Job, Stream
from workerd.engine.reader import Gap, Output
from workerd.engine.storage import Storage

MUCH = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; echo error $i >&2; done"
Damage = Callable[[JobFolder], object]


def overwrite(name: str, offset: int, data: bytes) -> Damage:
    def apply(folder: JobFolder) -> None:
        with (folder.path / name).open("r+b") as file:
            file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            file.write(data)

    return apply


def remove(name: str) -> Damage:
    return lambda folder: (folder.path / name).unlink()


def empty(name: str) -> Damage:
    return lambda folder: (folder.path / name).write_bytes(b"")


def make_directory(name: str) -> Damage:
    def apply(folder: JobFolder) -> None:
        (folder.path / name).unlink()
        (folder.path / name).mkdir()

    return apply


def leave_lock(folder: JobFolder) -> None:
    (folder.path / "lock").touch()
    folder.journal.unlink()


def cut_in_half(name: str) -> Damage:
    def apply(folder: JobFolder) -> None:
        os.truncate(folder.path / name, (folder.path / name).stat().st_size // 2)

    return apply


UNREADABLE = {
    "the journal is empty": empty("journal"),
    "the journal is gone": remove("journal"),
    "the journal is a directory": make_directory("journal"),
    "an earlier version left a lock, and the journal is gone": leave_lock,
    "the first record of the journal is damaged": overwrite("journal", 20, b"?"),
    "the end in the journal is damaged": overwrite("journal", -100, b"?"),
    "the journal is cut": cut_in_half("journal"),
    "the index is gone": remove("index"),
    "the index is empty": empty("index"),
    "the index is cut": cut_in_half("index"),
    "the index has no end": lambda folder: os.truncate(folder.index, folder.index.stat().st_size - 80),
    "the index is a directory": make_directory("index"),
    "the header of the index is damaged": overwrite("index", 9, b"\xff"),
    "the output is gone": remove("output"),
    "the output is cut": cut_in_half("output"),
}


async def ended_job(state: Path) -> JobFolder:
    async with Engine(state) as engine:
        job_id = await engine.spawn(shell(MUCH, request_key="key", name="mine"))
        await read_log(engine, job_id)
    folder = JobFolder(state / "jobs" / job_id)
    wait_unlocked(folder)
    return folder


@pytest.mark.parametrize("restart", [True, False], ids=["after a restart", "while the engine runs"])
@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_job_that_cannot_be_read_is_listed_as_damaged_and_can_be_removed(
    tmp_path: Path, damage: Damage, restart: bool
) -> None:
    folder = await ended_job(tmp_path)
    if restart:
        damage(folder)
    async with Engine(tmp_path) as engine, asyncio.timeout(30):
        await engine.wait_scanned()
        other = await engine.spawn(shell("echo other"))
        if not restart:
            damage(folder)
        with pytest.raises(SpoolCorrupt):
            async for _ in log_events(engine, folder.job_id):
                pass
        page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
        ids = [row.id for row in page.rows]
        assert ids == [other, folder.job_id]
        assert isinstance(page.rows[0], Job)
        assert isinstance(page.rows[1], DamagedJob) and page.rows[1].damage
        await engine.remove(folder.job_id)
        with pytest.raises(JobNotFound):
            engine.status(folder.job_id)
        page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
        assert [row.id for row in page.rows] == [other]
    assert not folder.path.exists()


@pytest.mark.parametrize("damage", ["the journal is empty", "the first record of the journal is damaged"])
async def test_a_key_whose_job_is_damaged_says_so_and_is_free_once_it_is_removed(tmp_path: Path, damage: str) -> None:
    folder = await ended_job(tmp_path)
    UNREADABLE[damage](folder)
    async with Engine(tmp_path) as engine, asyncio.timeout(30):
        with pytest.raises(SpoolCorrupt):
            await engine.spawn(shell("true", request_key="key"))
        await engine.remove(folder.job_id)
        assert await engine.spawn(shell("true", request_key="key")) == folder.job_id


async def test_a_key_does_not_wait_for_a_spawn_that_was_given_up(tmp_path: Path) -> None:
    """The engine that had taken the key ended before it started anything; no keeper has cleared it away."""
    folder = await ended_job(tmp_path)
    async with Engine(tmp_path) as keeping, Engine(tmp_path, keeps=False) as engine, asyncio.timeout(30):
        await keeping.remove(folder.job_id)
        shelf = engine._shelf
        spec = shell("true", request_key="key").specify(folder.job_id, 1, Storage())
        lock = shelf.claim(spec)
        assert lock is not None
        spawning = asyncio.create_task(engine.spawn(shell("echo now", request_key="key")))
        await asyncio.sleep(0)
        os.close(lock)
        assert await spawning == folder.job_id
        assert (await read_log(engine, folder.job_id)).stdout == b"now\n"


async def test_a_damaged_job_is_removed_when_it_is_too_old(tmp_path: Path) -> None:
    folder = await ended_job(tmp_path)
    UNREADABLE["the journal is empty"](folder)

    async def gone() -> bool:
        return not folder.path.exists()

    async with Engine(tmp_path, Storage(max_age_seconds=0.1)):
        await eventually(gone)


async def test_a_damaged_job_that_runs_is_stopped_before_it_is_removed(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine, asyncio.timeout(60):
        job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
        await wait_for_output(engine, job_id, b"ready")
        folder = JobFolder(tmp_path / "jobs" / job_id)
        overwrite("journal", 20, b"?")(folder)
        with pytest.raises(JobNotEnded):
            await engine.remove(job_id)
        with pytest.raises(SpoolCorrupt):
            await engine.stop(job_id, ME, 0)
        await asyncio.to_thread(wait_unlocked, folder)
        await engine.remove(job_id)
        assert not folder.path.exists()


@pytest.mark.parametrize("data", [b"\0\0\0", b"???"], ids=["zeros", "other bytes"])
async def test_bytes_that_are_not_those_of_the_job_are_never_served_at_any_offset(tmp_path: Path, data: bytes) -> None:
    folder = await ended_job(tmp_path)
    whole = folder.output.read_bytes()
    place = len(whole) // 2
    with folder.open_index() as index:
        damaged = next(each for each in index.records(1) if each.offset <= place < each.end_offset)
    overwrite("output", place, data)(folder)
    failed = 0
    async with Engine(tmp_path) as engine:
        for start in range(0, len(whole), 97):
            position = start
            try:
                async for event in log_events(engine, folder.job_id, Start(offset=start)):
                    if isinstance(event, Output):
                        assert event.offset == position
                        assert event.data == whole[position : position + len(event.data)]
                        position += len(event.data)
            except SpoolCorrupt:
                failed += 1
                assert start < damaged.end_offset and position <= max(start, damaged.offset)
            else:
                assert start >= damaged.end_offset and position == len(whole)
    assert failed > 0


async def test_a_short_read_is_damage_and_no_gap(tmp_path: Path) -> None:
    folder = await ended_job(tmp_path)
    size = folder.output.stat().st_size
    async with Engine(tmp_path) as engine:
        log = engine.read_log(folder.job_id, Start(), tuple(Stream), follow=True, room=lambda: 100)
        await anext(log)
        os.truncate(folder.output, size // 2)
        events = []
        with pytest.raises(SpoolCorrupt):
            events += [each async for batch in log for each in batch]
        assert not any(isinstance(event, Gap) for event in events)
        await log.aclose()


async def test_the_journal_mends_the_end_of_a_short_log(tmp_path: Path) -> None:
    """What a power cut may take of the two files is in the journal, which is on the disk before the end is told."""
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("echo out; echo error >&2; exit 3"))
        await read_log(engine, job_id)
    folder = JobFolder(tmp_path / "jobs" / job_id)
    wait_unlocked(folder)
    for damage in (empty("index"), remove("index"), empty("output"), remove("output"), overwrite("output", 0, b"x")):
        damage(folder)
        async with Engine(tmp_path) as engine:
            log = await read_log(engine, job_id)
        assert (log.stdout, log.stderr) == (b"out\n", b"error\n")
        assert log.end is not None and log.end.cause == Exited(3)
