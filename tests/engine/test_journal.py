"""A job's journal: what of it counts, and what becomes of a job whose journal is damaged."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.logs import read_log, shell
from workerd.engine import files
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import JobNotEnded, SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import DamagedJob, Exited, JobEnd, JobState, JobStatus, Stream, StreamSummary
from workerd.engine.journal import (
    Ended,
    Entry,
    LogTail,
    NotStarted,
    Specified,
    Stated,
    Supervised,
    Told,
    encode,
    goes_on,
    parse,
)
from workerd.engine.storage import DEFAULT_STORAGE

JOB, OTHER = "00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000001"
SPEC = shell("true", working_directory="/").specify(JOB, 1, DEFAULT_STORAGE)
END = JobEnd(
    cause=Exited(3),
    started_ns=1,
    ended_ns=2,
    user_cpu_seconds=0.5,
    system_cpu_seconds=0.25,
    peak_memory_bytes=4096,
    stdout=StreamSummary(1, "0" * 32),
    stderr=StreamSummary(0, "f" * 32),
)
RUNNING = JobStatus(state=JobState.RUNNING, pid=7, started_ns=1)
ENTRIES: tuple[Entry, ...] = (
    Specified("the spool", SPEC),
    Supervised(8, 9, "the boot", ""),
    Stated(RUNNING),
    Ended(JobStatus(state=JobState.ENDED, pid=7, started_ns=1, end=END), LogTail(0, b"\0\xff", 40, b"record")),
    Told(),
)


def written(entries: tuple[Entry, ...], job_id: str = JOB) -> tuple[bytes, list[int]]:
    """Encode a journal; return it, and where each record ends."""
    data, ends = b"", [0]
    for entry in entries:
        data += encode(entry, job_id, len(data))
        ends.append(len(data))
    return data, ends


WHOLE, ENDS = written(ENTRIES)


def test_a_journal_says_what_was_written() -> None:
    journal = parse(WHOLE, JOB)
    assert (journal.spool, journal.spec, journal.supervisor) == ("the spool", SPEC, ENTRIES[1])
    assert journal.status is not None and journal.status.end == END
    assert journal.tail == LogTail(0, b"\0\xff", 40, b"record")
    assert (journal.ended, journal.is_told, journal.size, journal.rest) == (True, True, len(WHOLE), 0)


def test_a_program_that_was_not_executed_leaves_no_state() -> None:
    journal = parse(written((*ENTRIES[:2], NotStarted()))[0], JOB)
    assert (journal.status, journal.supervisor, journal.spec) == (None, None, SPEC)


@given(st.integers(0, len(WHOLE)), st.binary(max_size=64))
def test_what_was_cut_off_does_not_count_whatever_is_in_its_place(cut: int, garbage: bytes) -> None:
    """The rest of the file may be missing, zeros, or anything."""
    for rest in (b"", bytes(len(WHOLE) - cut), garbage):
        data = WHOLE[:cut] + rest
        records = sum(data[:end] == WHOLE[:end] for end in ENDS[1:])
        journal = parse(data, JOB)
        assert journal.size == ENDS[records]
        assert journal.is_told == (records == len(ENTRIES))
        assert (journal.spec is None) == (records == 0)
        assert journal.ended == (records >= 4)
        assert not goes_on(data, JOB, journal.size)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed_and_told_from_a_cut(position: int, change: int) -> None:
    data = bytearray(WHOLE)
    data[position] ^= change
    changed = sum(end <= position for end in ENDS[1:])
    journal = parse(bytes(data), JOB)
    assert (journal.size, journal.rest) == (ENDS[changed], len(WHOLE) - ENDS[changed])
    assert goes_on(bytes(data), JOB, journal.size) == (changed < len(ENTRIES) - 1)


def test_a_record_of_another_job_or_another_place_does_not_check() -> None:
    assert parse(written(ENTRIES, OTHER)[0], JOB).size == 0
    moved = WHOLE[: ENDS[2]] + WHOLE[ENDS[1] : ENDS[2]]
    assert parse(moved, JOB).size == ENDS[2]


def test_nothing_but_that_it_was_told_comes_after_the_end() -> None:
    data = written((*ENTRIES[:4], Stated(RUNNING)))[0]
    assert parse(data, JOB).size == ENDS[4]
    assert parse(data, JOB).ended


def flip(data: bytes, start: int, end: int) -> bytes:
    middle = (start + end) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def blank(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(end - start) + data[end:]


def truncate(data: bytes, start: int, end: int) -> bytes:
    return data[: (start + end) // 2]


@pytest.mark.parametrize("damage", [flip, blank, truncate])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("printed", ["", "text"])
async def test_an_ended_job_with_a_damaged_record_is_told_as_damaged_and_can_be_removed(
    tmp_path: Path, damage: Callable[[bytes, int, int], bytes], number: int, printed: str
) -> None:
    """Neither as one that runs for ever, nor as one that never was; and its key starts nothing again."""
    request = shell(f"echo -n {printed}", request_key="k")
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(request)
        await read_log(engine, job_id)
        await engine._shelf.wait_unlocked(engine._shelf.folder(job_id))
    folder = JobFolder(tmp_path / "jobs" / job_id)
    data = folder.journal.read_bytes()
    ends = [0]
    while (length := int.from_bytes(data[ends[-1] : ends[-1] + 4], "little")) and ends[-1] < len(data):
        ends.append(ends[-1] + 8 + length)
    folder.journal.write_bytes(damage(data, ends[number], ends[number + 1]))
    for catalog in (True, False):
        if not catalog:
            (tmp_path / "catalog.sqlite").unlink()
        async with Engine(tmp_path) as engine:
            [row] = (await engine.list_jobs(None, states=(), name="", size=10, after=None)).rows
            assert isinstance(row, DamagedJob) and str(folder.path) in row.damage
            with pytest.raises(SpoolCorrupt):
                engine.status(job_id)
            with pytest.raises(SpoolCorrupt):
                await anext(aiter(engine.read_log(job_id, Start(), frozenset(Stream), follow=True)))
            if number >= 2:
                assert await asyncio.wait_for(engine.spawn(request), 30) == job_id
                continue
            with pytest.raises(SpoolCorrupt):
                await asyncio.wait_for(engine.spawn(request), 30)
    async with Engine(tmp_path) as engine:
        await engine.remove(job_id)
        assert os.listdir(tmp_path / "jobs") == []


async def test_a_running_job_with_a_damaged_journal_is_told_as_damaged_and_stopped(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("exec sleep 1000"))
        folder = JobFolder(tmp_path / "jobs" / job_id)
        spec = folder.read_spec()
        first = len(encode(Specified(engine._shelf.spool, spec), job_id, 0))
        with folder.journal.open("r+b") as journal:
            journal.seek(first + 20)
            journal.write(b"\0")
        with pytest.raises(SpoolCorrupt):
            engine.status(job_id)
        with pytest.raises(JobNotEnded):
            await engine.remove(job_id)
        with pytest.raises(SpoolCorrupt):
            await engine.stop(job_id, spec.owner, 0)
        async with asyncio.timeout(30):
            await engine._shelf.wait_unlocked(folder)
            await engine.remove(job_id)
        assert os.listdir(tmp_path / "jobs") == []


@pytest.mark.parametrize("short", [0, 20, ENDS[1] + 20, ENDS[3] + 20])
async def test_one_short_look_at_a_journal_gives_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    """Neither the job, whose folder a keeper would remove, nor its end, which would be taken for lost."""
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("exit 3"))
        await read_log(engine, job_id)
    folder = JobFolder(tmp_path / "jobs" / job_id)
    read_whole, looks = files.read_whole, 0

    def read_short(path: Path, most: int = 0) -> bytes:
        nonlocal looks
        looks += path.name == "journal"
        return read_whole(path, most)[:short] if looks == 1 and path.name == "journal" else read_whole(path, most)

    monkeypatch.setattr("workerd.engine.folder.read_whole", read_short)
    assert folder.read().ended
    assert looks == 2
