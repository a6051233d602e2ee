"""Job folders of other versions: those of older ones always read, those of newer ones are left as they are.

`tests/spools/format-1` was written by workerd before its first release, and is never written again: a job that ended by
itself, one whose supervisor was killed while it wrote a record, and one that somebody stopped. Version control keeps
neither a FIFO nor an empty lock, so both are missing.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import xxhash

from tests.engine.logs import ME, read_log, shell
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import DamagedJob, Exited, JobState, Killed, Lost, Stopped, Stream, User
from workerd.engine.reader import Output
from workerd.engine.record import RECORD_SIZE, Kind, OldCodec, Record

SPOOL = Path(__file__).parent.parent / "spools" / "format-1"
ENDED = "28535ea6-a466-5cc2-b1e7-f3853b0251cb"
KILLED = "9d9b7d16-232f-4762-8621-158c1fe679b4"
STOPPED = "db50ef71-ccf2-44a5-b329-f246f29dfa42"
OUT = [b"out %d\0\xff\n" % number for number in range(8)]
ERR = [b"err %d\1\xfe\n" % number for number in range(8)]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that holds what an older daemon left."""
    shutil.copytree(SPOOL, tmp_path / "state" / "jobs")
    return tmp_path / "state"


def contents(folder: JobFolder) -> dict[str, bytes]:
    """Every file of a folder, but for the lock, which is empty whoever makes it."""
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name != "lock"}


async def test_a_job_of_format_1_that_ended_reads_byte_by_byte(state: Path) -> None:
    folder = JobFolder(state / "jobs" / ENDED)
    before = contents(folder)
    async with Engine(state) as engine:
        log = await read_log(engine, ENDED)
        assert [(event.stream, event.data) for event in log.events if isinstance(event, Output)] == [
            event for out, err in zip(OUT, ERR, strict=True) for event in ((Stream.STDOUT, out), (Stream.STDERR, err))
        ]
        assert log.end is not None
        assert log.end.cause == Exited(3)
        for stream, summary in ((log.stdout, log.end.stdout), (log.stderr, log.end.stderr)):
            assert (summary.size_bytes, summary.xxh3_128) == (len(stream), xxhash.xxh3_128_hexdigest(stream))
        whole = b"".join(event.data for event in log.events if isinstance(event, Output))
        for offset in range(len(whole) + 1):
            rest = await read_log(engine, ENDED, Start(offset=offset))
            assert b"".join(event.data for event in rest.events if isinstance(event, Output)) == whole[offset:]
        job = engine.status(ENDED)
        assert (job.spec.name, job.spec.owner, job.spec.envs) == ("interleaved", ME, {"GREETING": "grüße"})
        assert (job.spec.timeout_seconds, job.stdout_bytes, job.stderr_bytes) == (60.0, 64, 64)
    assert contents(folder) == before


async def test_a_job_of_format_1_that_was_stopped_tells_by_whom(state: Path) -> None:
    async with Engine(state) as engine:
        log = await read_log(engine, STOPPED)
    assert log.stdout == b"ready\n"
    assert log.end is not None
    operator = User("22222222-2222-4222-8222-222222222222", "operator")
    assert log.end.cause == Stopped(operator, 15, Killed(15))


async def test_a_job_of_format_1_whose_supervisor_was_killed_is_ended_as_lost(state: Path) -> None:
    async with Engine(state) as engine:
        log = await read_log(engine, KILLED)
    assert (log.stdout, log.stderr) == (b"ready\n", b"problem")
    assert log.end is not None
    assert isinstance(log.end.cause, Lost)
    assert (log.end.stdout.size_bytes, log.end.stderr.size_bytes) == (6, 7)
    assert log.end.stderr.xxh3_128 == xxhash.xxh3_128_hexdigest(b"problem")
    async with Engine(state) as engine:
        assert await read_log(engine, KILLED) == log


async def test_jobs_of_format_1_are_listed_and_found_by_their_keys(state: Path) -> None:
    async with Engine(state) as engine:
        await engine.wait_scanned()
        await read_log(engine, KILLED)
        page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
        assert [job.id for job in page.jobs] == [STOPPED, KILLED, ENDED]
        assert all(job.ended for job in page.jobs)
        assert await engine.spawn(shell("true", request_key="once")) == ENDED


def newer_spec(folder: JobFolder) -> Path:
    """Write an unknown format and an unknown field into a spec."""
    spec = msgspec.json.decode(folder.spec.read_bytes())
    folder.spec.write_bytes(msgspec.json.encode({**spec, "format": 99, "shape": {"of": "things to come"}}))
    return folder.spec


def newer_index(folder: JobFolder) -> Path:
    """Write an unknown format into an index."""
    header = OldCodec().pack(0, Record(Kind.HEADER, None, 99, 0, 0, 1))
    folder.index.write_bytes(header + folder.index.read_bytes()[RECORD_SIZE:])
    return folder.index


def alien_spec(folder: JobFolder) -> Path:
    """Replace a spec by one of a newer format in which nothing else is as it was."""
    folder.spec.write_bytes(b'{"format": 99, "wish": ["true"]}')
    return folder.spec


@pytest.mark.parametrize("make_newer", [newer_spec, newer_index, alien_spec])
@pytest.mark.parametrize("job_id", [ENDED, KILLED])
async def test_what_a_newer_version_wrote_is_refused_and_left_untouched(
    state: Path, job_id: str, make_newer: Callable[[JobFolder], Path]
) -> None:
    """Also by the scan at the start, which looks after what an older or the same version left."""
    folder = JobFolder(state / "jobs" / job_id)
    named = make_newer(folder)
    before = contents(folder)
    async with Engine(state) as engine:
        await engine.wait_scanned()
        with pytest.raises(SpoolCorrupt, match=r"format 99 is newer .*update workerd") as caught:
            await read_log(engine, job_id)
        assert caught.value.path == named
        other = await read_log(engine, STOPPED)
        assert other.stdout == b"ready\n"
    assert contents(folder) == before


async def test_a_start_that_was_cut_off_in_a_newer_version_is_left_untouched(state: Path) -> None:
    folder = JobFolder(state / "jobs" / "00000000-0000-4000-8000-000000000000")
    folder.path.mkdir()
    shutil.copy(SPOOL / ENDED / "spec", folder.spec)
    newer_spec(folder)
    before = contents(folder)
    async with Engine(state) as engine:
        await engine.wait_scanned()
    assert contents(folder) == before


def test_the_spool_of_format_1_says_so() -> None:
    for path in SPOOL.iterdir():
        assert msgspec.json.decode((path / "spec").read_bytes())["format"] == 1
        assert (path / "index").read_bytes()[8] == 1
    assert {path.name for path in SPOOL.iterdir()} == {ENDED, KILLED, STOPPED}
    assert JobState.RUNNING in (SPOOL / KILLED / "status").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb'"xxh3_128":"[0-9a-f]{2}', rb'"xxh3_128":"zz'),
        (rb'"ended_ns":\d+', rb'"ended_ns":99999999999999999999'),
        (rb'"ended_ns":\d+', rb'"ended_ns":-1'),
        (rb'"size_bytes":\d+', rb'"size_bytes":-1'),
        (rb'"state":"ended"', rb'"state":"running"'),
    ],
)
async def test_a_value_that_no_job_could_have_harms_one_row_of_a_list(state: Path, old: bytes, new: bytes) -> None:
    status = state / "jobs" / ENDED / "status"
    changed = re.sub(old, new, status.read_bytes(), count=1)
    assert changed != status.read_bytes()
    status.write_bytes(changed)
    async with Engine(state) as engine:
        await read_log(engine, KILLED)
        page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
        damaged = {row.id: isinstance(row, DamagedJob) for row in page.rows}
        assert damaged == {STOPPED: False, KILLED: False, ENDED: True}
        with pytest.raises(SpoolCorrupt):
            await read_log(engine, ENDED)
        await engine.remove(ENDED)


@pytest.mark.parametrize("status", [b"", bytes(300)])
async def test_a_status_that_a_power_cut_took_is_that_of_a_lost_job(state: Path, status: bytes) -> None:
    (state / "jobs" / KILLED / "status").write_bytes(status)
    async with Engine(state) as engine:
        log = await read_log(engine, KILLED)
    assert log.stdout == b"ready\n"
    assert log.end is not None and isinstance(log.end.cause, Lost)
