"""What befalls one job's files, or stands where none of ours does, harms that job at most, and holds nobody up."""

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.folders import write_running
from tests.engine.logs import ME, read_log, shell
from tests.small_disk import fill, small_disk
from tests.waiting import wait_unlocked
from workerd.engine import linux, request_keys
from workerd.engine.engine import Engine
from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.index import IndexFile
from workerd.engine.job import DamagedJob, Job, StopOrder, Stream
from workerd.engine.journal import JournalWriter
from workerd.engine.reader import measure
from workerd.engine.record import Record
from workerd.engine.request import SpawnRequest
from workerd.engine.storage import Storage


async def ended_job(state: Path, request: SpawnRequest) -> JobFolder:
    async with Engine(state) as engine:
        job_id = await engine.spawn(request)
        await read_log(engine, job_id)
    folder = JobFolder(state / "jobs" / job_id)
    wait_unlocked(folder)
    return folder


async def test_a_key_whose_first_spawn_a_power_cut_took_is_free_at_once(tmp_path: Path) -> None:
    async with Engine(tmp_path):
        pass
    keys = request_keys.read(tmp_path / "request-keys")
    job_id = keys.job_id(ME.id, "k")
    for each in (job_id, *keys.earlier_ids(ME.id, "k")):
        (tmp_path / "jobs" / each).mkdir(mode=0o700)
        (tmp_path / "jobs" / each / "journal").touch(mode=0o600)
    async with Engine(tmp_path) as engine:
        assert await engine.spawn(shell("echo hi", request_key="k")) == job_id
        assert (await read_log(engine, job_id)).stdout == b"hi\n"


def test_output_and_end_that_come_while_a_log_is_measured_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_running(tmp_path, [(Stream.STDOUT, b"one")])

    def go_on() -> None:
        monkeypatch.undo()
        written.log.append(Stream.STDOUT, memoryview(b"two"))
        written.log.end()

    def last_output(index: IndexFile) -> Record | None:
        found = original_last(index)
        go_on()
        return found

    original_last = IndexFile.last_output
    monkeypatch.setattr(IndexFile, "last_output", last_output)
    assert measure(written.folder).stdout in (3, 6)
    assert measure(written.folder).stdout == 6


async def test_what_cannot_be_swept_away_keeps_no_daemon_from_its_start(tmp_path: Path) -> None:
    async with Engine(tmp_path):
        pass
    (tmp_path / "removed" / "stray").touch()
    (tmp_path / "drafts" / "stray").touch()
    async with Engine(tmp_path) as engine:
        assert (await engine.list_jobs(None, states=(), name="", size=1, after=None)).rows == ()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """Errors with which the kernel refuses to open files, by their paths: root may open all."""
    errors: dict[str, int] = {}
    original = os.open

    def open_(path: object, *args: object, **kwargs: object) -> int:
        if (number := errors.get(str(path))) is not None:
            raise OSError(number, os.strerror(number), str(path))
        return original(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)
    yield errors
    monkeypatch.undo()


@pytest.mark.parametrize("number", [13, 1, 117, 74], ids=["EACCES", "EPERM", "EUCLEAN", "EBADMSG"])
@pytest.mark.parametrize("name", ["journal", "index"])
async def test_a_file_that_the_kernel_does_not_open_harms_its_job_alone(
    tmp_path: Path, name: str, number: int, refused: dict[str, int]
) -> None:
    folder = await ended_job(tmp_path, shell("echo harmed"))
    whole = await ended_job(tmp_path, shell("echo whole"))
    async with Engine(tmp_path) as engine:
        refused[str(folder.path / name)] = number
        rows = (await engine.list_jobs(None, states=(), name="", size=9, after=None)).rows
        assert [(type(row), row.id if isinstance(row, DamagedJob) else row.spec.id) for row in rows] == [
            (Job, whole.job_id),
            (DamagedJob, folder.job_id),
        ]
        with pytest.raises(SpoolCorrupt):
            engine.status(folder.job_id)
        await engine.remove(folder.job_id)
        assert not folder.path.exists()


async def test_a_state_directory_whose_identity_the_kernel_does_not_open_gets_another(
    tmp_path: Path, refused: dict[str, int]
) -> None:
    """It is one file with what stands in each job's folder, so what befalls that befalls it."""
    async with Engine(tmp_path):
        pass
    before = (tmp_path / "spool").read_bytes()
    refused[str(tmp_path / "spool")] = 13
    original = os.rename

    def rename(source: object, target: object) -> None:
        original(source, target)  # type: ignore[arg-type]
        refused.pop(str(target), None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", rename)
        async with Engine(tmp_path):
            assert (tmp_path / "spool").read_bytes() != before


async def test_a_damaged_journal_of_a_job_with_large_arguments_is_not_read_over_and_over(tmp_path: Path) -> None:
    arguments = tuple("\x01" * 100_000 for _ in range(10))
    folder = await ended_job(tmp_path, SpawnRequest(owner=ME, program="true", args=arguments))
    begin = time.process_time()
    folder.read()
    once = time.process_time() - begin
    with folder.journal.open("r+b") as file:
        file.seek(-300, os.SEEK_END)
        file.write(b"??")
    begin = time.process_time()
    assert folder.read().rest > 0
    assert time.process_time() - begin < 10 * once + 0.05


async def test_a_journal_that_is_longer_than_any_can_be_is_not_read(tmp_path: Path) -> None:
    folder = await ended_job(tmp_path, shell("true"))
    os.truncate(folder.journal, 1 << 40)
    async with Engine(tmp_path) as engine:
        with pytest.raises(SpoolCorrupt):
            engine.status(folder.job_id)
        await engine.remove(folder.job_id)


def test_a_supervisor_notes_only_so_many_faults(tmp_path: Path) -> None:
    """A job of the daemon's account can write what it likes into the pipe for orders."""
    written = write_running(tmp_path)
    writer = JournalWriter(written.lock, written.folder.job_id, written.folder.journal.stat().st_size)
    for number in range(1000):
        writer.report_fault(f"fault {number}\n")
    assert 0 < len(written.folder.read().faults) < 100


async def test_retention_leaves_a_damaged_job_that_runs(tmp_path: Path) -> None:
    async with Engine(tmp_path, Storage(max_age_seconds=0.1)) as engine:
        job_id = await engine.spawn(shell("sleep 60"))
        folder = JobFolder(tmp_path / "jobs" / job_id)
        shutil.copy(folder.journal, folder.path / "copy")
        os.rename(folder.path / "copy", folder.journal)
        await asyncio.sleep(2)
        assert folder.path.exists()
        folder.order_stop(StopOrder(ME, 0))
        while folder.is_watched():
            await asyncio.sleep(0.05)


def take_away(control: Path) -> None:
    control.unlink()


def replace_by_file(control: Path) -> None:
    control.unlink()
    control.touch()


def replace_by_device(control: Path) -> None:
    control.unlink()
    control.symlink_to(os.devnull)


@pytest.mark.parametrize("damage", [take_away, replace_by_file, replace_by_device])
async def test_a_stop_of_a_job_that_takes_no_orders_any_more_says_so(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("sleep 60"))
        damage(tmp_path / "jobs" / job_id / "control")
        with pytest.raises(SpoolCorrupt, match="by hand"):
            async with asyncio.timeout(10):
                await engine.stop(job_id, ME, 0)
        os.kill(engine.status(job_id).status.pid, signal.SIGKILL)
        assert (await read_log(engine, job_id)).end is not None


async def test_an_end_is_told_once_a_stranger_who_only_reads_lets_go_of_the_lock(tmp_path: Path) -> None:
    told: list[str] = []
    async with Engine(tmp_path, on_end=lambda spec, _: told.append(spec.id)) as engine:
        job_id = await engine.spawn(shell("sleep 0.5"))
        descriptor = os.open(tmp_path / "jobs" / job_id / "journal", os.O_RDONLY)
        await asyncio.to_thread(fcntl.flock, descriptor, fcntl.LOCK_EX)  # as the supervisor ends
        await asyncio.sleep(2)
        os.close(descriptor)
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.05)
    assert told == [job_id]


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_half_a_record_that_found_no_room_is_taken_back(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system sets no room aside."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(linux, "set_room_aside", refuse)
    with small_disk(tmp_path / "disk", 4 << 20, 4096, kind):
        written = write_running(tmp_path / "disk" / "state")
        size = written.folder.journal.stat().st_size
        writer = JournalWriter(written.lock, written.folder.job_id, size)
        fill(tmp_path / "disk")
        for _ in range(2):
            writer.report_fault("x" * 3900)
        journal = written.folder.read()
        assert (journal.rest, journal.size) == (0, written.folder.journal.stat().st_size)
        written.log.close()
        os.close(written.lock)


def behind_a_link(file: Path) -> None:
    """To what was there, so that it would be read as before."""
    file.symlink_to(file.rename(file.with_name("moved")))


def of_another_account(file: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another account")
    os.chown(file, 23461, -1)


@pytest.mark.parametrize("damage", [behind_a_link, of_another_account])
@pytest.mark.parametrize("name", ["journal", "output", "index"])
async def test_a_file_that_is_not_the_daemon_s_own_is_not_read(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = await ended_job(tmp_path, shell("echo hi"))
    damage(folder.path / name)
    async with Engine(tmp_path) as engine:
        with pytest.raises(SpoolCorrupt, match=f"{name} cannot be read: "):
            await read_log(engine, folder.job_id)
