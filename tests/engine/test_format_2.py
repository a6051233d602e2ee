"""Jobs that a daemon of format 2 left, as its own `jobs` directory has them: they read as they always did.

`tests/spools/format-2/README.md` says what each of them is.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import xxhash

from tests.daemon import end_jobs
from tests.engine.logs import ME, Log, read_log, shell
from tests.older import unpack
from tests.waiting import eventually
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import InvalidArgument, JobNotFound
from workerd.engine.job import Cause, Exited, JobEnd, JobSpec, JobState, Killed, Lost, Share, Stopped, TimedOut, User
from workerd.engine.reader import Gap, Output

ARCHIVE = Path(__file__).parent.parent / "spools" / "format-2" / "jobs.tar.xz"
ANNA = User("22222222-2222-4222-8222-222222222222", "anna")
EIGHT_OUT = b"".join(b"out %d\0\xff\n" % number for number in range(8))
EIGHT_ERR = b"".join(b"err %d\1\xfe\n" % number for number in range(8))
MUCH = b"".join(b"%01023d\n" % number for number in range(1, 9001))
VANISHED = Lost("the job's supervisor vanished, and the job with it")
LIMIT_BYTES = 4 << 20


@dataclass(frozen=True)
class Left:
    """What one job has printed, how it ended, and what is in its folder besides.

    Attributes:
        told: whether its end had been told.
        ran: whether it was copied while it ran.
        released: whether its log's beginning is gone.
    """

    cause: Cause
    stdout: bytes = b""
    stderr: bytes = b""
    shares: tuple[Share, ...] = ()
    told: bool = True
    ran: bool = False
    released: bool = False


LEFT = {
    "interleaved": Left(Exited(3), EIGHT_OUT, EIGHT_ERR),
    "silent": Left(Exited(0)),
    "killed": Left(Killed(9), b"out\n", b"err\n"),
    "timed-out": Left(TimedOut(1.0, 15), b"out\n", b"ready\n"),
    "stopped": Left(Stopped(ME, 15, Killed(15)), b"", b"ready\n"),
    "shared": Left(Exited(0), b"shared\n", shares=(Share(ANNA, ("status", "stream-log")),)),
    "fault": Left(Stopped(ME, 15, Killed(15)), b"", b"ready\n"),
    "released": Left(Exited(0), MUCH, b"end\n", released=True),
    "lost": Left(VANISHED, b"out\n", b"ready\n"),
    "lost-released": Left(VANISHED, MUCH, b"ready\n", released=True),
    "untold": Left(Exited(4), b"before\nafter\n", b"ready\n", told=False),
    "running": Left(VANISHED, EIGHT_OUT, EIGHT_ERR + b"ready\n", (Share(ANNA, ("stop",)),), told=False, ran=True),
    "running-released": Left(VANISHED, MUCH, b"ready\n", told=False, ran=True, released=True),
}
ENDED = [name for name, left in LEFT.items() if not left.ran]
every_job = pytest.mark.parametrize("name", LEFT)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory that holds what a daemon of format 2 left."""
    (tmp_path / "state").mkdir()
    with tarfile.open(ARCHIVE) as archive:
        unpack(archive, tmp_path / "state")
    return tmp_path / "state"


def ids(state: Path) -> dict[str, str]:
    """The ids of the jobs by name, off the files."""
    specs = [msgspec.json.decode(path.read_bytes()) for path in state.glob("jobs/*/spec")]
    assert all(spec["format"] == 2 for spec in specs)
    return {spec["name"]: spec["id"] for spec in specs}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder; a FIFO has no bytes."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


def check_bytes(log: Log, left: Left, kept_from: int, start: int = 0) -> None:
    """Check that a log read from an offset on has all that is kept from there on, and says what is not."""
    offset = start
    for event in log.events:
        if isinstance(event, Gap):
            assert (event.start, event.end) == (start, kept_from)
            assert start < kept_from
            offset = event.end
        else:
            assert event.offset == offset
            whole = left.stdout if event.stream == 1 else left.stderr
            assert event.data == whole[event.stream_offset : event.stream_offset + len(event.data)]
            offset += len(event.data)
    assert offset == len(left.stdout) + len(left.stderr)
    if start == 0 and not kept_from:
        assert (log.stdout, log.stderr) == (left.stdout, left.stderr)


@every_job
async def test_its_log_reads_byte_by_byte_from_any_offset_with_its_end(state: Path, name: str) -> None:
    left, job_id = LEFT[name], ids(state)[name]
    async with Engine(state) as engine:
        log = await read_log(engine, job_id)
        kept_from = engine.status(job_id).kept_from
        assert (kept_from > 0) is left.released
        check_bytes(log, left, kept_from)
        size = len(left.stdout) + len(left.stderr)
        near_ends = {*range(min(200, size + 1)), *range(max(0, size - 20), size + 1)}
        for offset in near_ends | ({kept_from - 1, kept_from, kept_from + 1} if kept_from else set()):
            check_bytes(await read_log(engine, job_id, Start(offset=offset)), left, kept_from, offset)
        with pytest.raises(InvalidArgument):
            await read_log(engine, job_id, Start(offset=size + 1))
    assert log.end is not None
    assert log.end.cause == left.cause
    for printed, summary in ((left.stdout, log.end.stdout), (left.stderr, log.end.stderr)):
        is_known = not (left.released and left.cause == VANISHED)
        digest = xxhash.xxh3_128_hexdigest(printed) if is_known else ""
        assert (summary.size_bytes, summary.xxh3_128) == (len(printed), digest)


async def test_the_two_streams_come_in_the_order_in_which_they_were_printed(state: Path) -> None:
    async with Engine(state) as engine:
        log = await read_log(engine, ids(state)["interleaved"])
    outputs = [event for event in log.events if isinstance(event, Output)]
    assert [event.stream for event in outputs] == [1, 2] * 8
    assert [event.time_ns for event in outputs] == sorted(event.time_ns for event in outputs)


@every_job
async def test_its_status_tells_what_was_asked_and_with_whom_it_is_shared(state: Path, name: str) -> None:
    left, job_id = LEFT[name], ids(state)[name]
    async with Engine(state) as engine:
        await read_log(engine, job_id)
        job = engine.status(job_id)
        assert engine.shares(job_id) == left.shares
        found = engine.find(job_id)
        assert (found.owner, found.shares) == (ME, left.shares)
    assert (job.id, job.status.state, job.spec.owner, job.spec.name) == (job_id, JobState.ENDED, ME, name)
    assert (job.spec.program, job.spec.args[0], job.spec.working_directory) == ("/bin/sh", "-c", "/")
    assert job.spec.envs == ({"GREETING": "grüße"} if name == "interleaved" else {})
    assert job.spec.timeout_seconds == (1.0 if name == "timed-out" else None)
    assert job.spec.max_log_bytes == (LIMIT_BYTES if left.released else 10 << 30)
    assert (job.stdout_bytes, job.stderr_bytes) == (len(left.stdout), len(left.stderr))


@pytest.mark.parametrize("name", ENDED)
async def test_its_folder_stays_as_it_was(state: Path, name: str) -> None:
    folder = state / "jobs" / ids(state)[name]
    before = contents(folder)
    async with Engine(state) as engine:
        await engine.wait_scanned()
        await read_log(engine, folder.name)
        engine.status(folder.name)
    assert contents(folder) == before


async def test_they_are_listed_beside_new_jobs(state: Path) -> None:
    old = ids(state)
    async with Engine(state) as engine:
        new = await engine.spawn(shell("echo new", name="new"))
        await read_log(engine, new)
        page = await engine.list_jobs(ME.id, states=(), name="", size=100, after=None)
        created = [job.spec.created_ns for job in page.jobs]
        assert created == sorted(created, reverse=True)
        assert {job.spec.name: job.id for job in page.jobs} == {**old, "new": new}
        for name, job_id in old.items():
            [job] = (await engine.list_jobs(ME.id, states=(), name=name, size=100, after=None)).jobs
            assert job.id == job_id
        assert (await read_log(engine, new)).stdout == b"new\n"


@every_job
async def test_it_is_removed_and_the_others_stay(state: Path, name: str) -> None:
    old = ids(state)
    async with Engine(state) as engine:
        await read_log(engine, old[name])
        await engine.remove(old[name])
        with pytest.raises(JobNotFound):
            engine.status(old[name])
        page = await engine.list_jobs(ME.id, states=(), name="", size=100, after=None)
        assert {job.spec.name for job in page.jobs} == LEFT.keys() - {name}
    assert {path.name for path in (state / "jobs").iterdir()} == set(old.values()) - {old[name]}
    assert not list((state / "removed").iterdir())


@every_job
async def test_its_request_key_finds_it_until_it_is_removed(state: Path, name: str) -> None:
    old = ids(state)
    request = shell("echo again", request_key=name)
    try:
        async with Engine(state) as engine:
            await read_log(engine, old[name])
            assert await engine.spawn(request) == old[name]
            await engine.remove(old[name])
            again = await engine.spawn(request)
            assert again not in old.values()
            assert (await read_log(engine, again)).stdout == b"again\n"
    finally:
        end_jobs(state)


@every_job
async def test_whom_it_is_shared_with_can_be_changed(state: Path, name: str) -> None:
    job_id = ids(state)[name]
    bert = User("33333333-3333-4333-8333-333333333333", "bert")
    async with Engine(state) as engine:
        await read_log(engine, job_id)
        assert await engine.share(job_id, bert, ["status"]) == (*LEFT[name].shares, Share(bert, ("status",)))
        await engine.share(job_id, bert, [])
        assert await engine.share(job_id, ANNA, []) == ()
    async with Engine(state) as engine:
        assert engine.shares(job_id) == ()


async def test_only_the_ends_that_were_never_told_are_told(state: Path) -> None:
    told: dict[str, JobEnd] = {}

    def on_end(spec: JobSpec, end: JobEnd) -> None:
        assert spec.name not in told
        told[spec.name] = end

    untold = {name: left for name, left in LEFT.items() if not left.told}

    async def all_told() -> bool:
        return told.keys() >= untold.keys()

    for _ in range(2):
        async with Engine(state, on_end=on_end) as engine:
            await engine.wait_scanned()
            await eventually(all_told)
    assert {name: end.cause for name, end in told.items()} == {name: left.cause for name, left in untold.items()}


@pytest.mark.parametrize("name", [name for name, left in LEFT.items() if left.ran])
async def test_a_job_that_was_copied_while_it_ran_is_lost_with_all_that_was_captured(state: Path, name: str) -> None:
    """Once: whoever comes later finds the same end."""
    job_id = ids(state)[name]
    async with Engine(state) as engine:
        job = await engine.stop(job_id, ME, 0.0)
        log = await read_log(engine, job_id)
        assert not job.ended or job.status.end == log.end
    async with Engine(state) as engine:
        assert await read_log(engine, job_id) == log
    check_bytes(log, LEFT[name], 0 if not LEFT[name].released else log.events[0].end)  # type: ignore[union-attr]


def test_the_archive_holds_every_job_as_it_was_on_the_disk(state: Path) -> None:
    old = ids(state)
    assert old.keys() == LEFT.keys()
    for name, left in LEFT.items():
        folder = state / "jobs" / old[name]
        pipe = folder / ("told" if left.told else "control")
        assert pipe.is_fifo()
        assert msgspec.json.decode((folder / "status").read_bytes())["state"] == ("running" if left.ran else "ended")
        assert (folder / "lock").read_bytes() == b""
        assert (folder / "fault").exists() is (name == "fault")
        output = (folder / "output").stat()
        assert output.st_size == len(left.stdout) + len(left.stderr)
        if left.released:
            assert output.st_blocks * 512 < LIMIT_BYTES
