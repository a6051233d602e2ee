"""A job whose supervisor vanished: what was captured is kept, what is left of the job is ended, and only that."""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.engine.folders import JOB_ID, Written, write_running
from tests.engine.logs import ME, read_log, read_whole_log, shell, wait_for_output
from tests.waiting import wait_unlocked
from workerd.engine import identity, remains
from workerd.engine.engine import Engine
from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import Exited, Lost, Stopped, Stream
from workerd.engine.reader import LogReader
from workerd.engine.record import RECORD_SIZE

WRITES = [(Stream.STDOUT, b"one"), (Stream.STDERR, b"two!"), (Stream.STDOUT, b"three"), (Stream.STDERR, b"4")]
SLEEP = ["/bin/sleep", "1000"]


@pytest.fixture
def torn(tmp_path: Path) -> Iterator[Written]:
    """The folder of a job that ran when its supervisor vanished."""
    with closing(write_running(tmp_path, WRITES)) as written:
        yield written


def test_a_damaged_record_ends_what_can_be_trusted(torn: Written) -> None:
    index = bytearray(torn.folder.index.read_bytes())
    index[2 * RECORD_SIZE + 9] ^= 1
    torn.folder.index.write_bytes(index)
    assert torn.recover()
    assert read_whole_log(torn.folder) == WRITES[:1]


def test_output_that_is_not_what_its_record_says_ends_what_can_be_trusted(torn: Written) -> None:
    """As after a power cut, which leaves zeros in a file that has its right length."""
    with torn.folder.output.open("r+b") as output:
        output.seek(len(b"onetwo!th"))
        output.write(bytes(len(b"ree4")))
    assert torn.recover()
    assert read_whole_log(torn.folder) == WRITES[:2]
    assert torn.folder.output.read_bytes() == b"onetwo!"


def test_recovering_again_changes_nothing(torn: Written) -> None:
    assert torn.recover()
    paths = (torn.folder.index, torn.folder.output, torn.folder.journal)
    before = [path.read_bytes() for path in paths]
    assert not torn.recover()
    assert [path.read_bytes() for path in paths] == before


def test_a_log_with_its_end_whose_journal_has_none_is_damage_and_no_loss(torn: Written) -> None:
    """The end was on the disk before it was told: what is missing was taken since, and nothing is made up for it."""
    journal = torn.folder.journal.stat().st_size
    torn.end(in_tail=False)
    torn.log.end()
    os.truncate(torn.folder.journal, journal)
    before = [path.read_bytes() for path in (torn.folder.index, torn.folder.output, torn.folder.journal)]
    with pytest.raises(SpoolCorrupt):
        torn.recover()
    assert [path.read_bytes() for path in (torn.folder.index, torn.folder.output, torn.folder.journal)] == before


def test_a_released_log_of_which_nothing_later_checks_is_a_gap_alone(tmp_path: Path) -> None:
    with closing(write_running(tmp_path, [(Stream(n % 2 + 1), b"%04d" % n * 50) for n in range(40)], 2000)) as torn:
        with LogReader(torn.folder) as reader:
            [gap] = reader.read()
        with torn.folder.output.open("r+b") as output:
            output.write(bytes(8000))
        assert torn.recover()
        with LogReader(torn.folder) as reader:
            assert reader.read() == [gap]
            assert reader.read() == []
            assert reader.complete
        status = torn.folder.read_status()
        assert status is not None and status.end is not None
        assert status.end.stdout.size_bytes + status.end.stderr.size_bytes == reader.position
        assert status.end.stdout.xxh3_128 == ""


def test_what_is_left_of_a_job_without_a_cgroup_is_found_by_its_mark(tmp_path: Path) -> None:
    with closing(write_running(tmp_path, WRITES, boot=identity.boot_id())) as torn:
        mark = identity.job_mark(torn.spool, JOB_ID)
        other = identity.job_mark("another", JOB_ID)
        with (
            subprocess.Popen(SLEEP, env={identity.MARK_VARIABLE: mark}) as left,
            subprocess.Popen(SLEEP, env={"A": mark, identity.MARK_VARIABLE: other}) as stranger,
        ):
            assert torn.recover()
            assert left.wait(10) == -signal.SIGKILL
            assert stranger.poll() is None
            stranger.kill()


@pytest.mark.parametrize("boot", ["an earlier boot", identity.boot_id()])
def test_what_has_the_mark_of_another_boot_or_another_spool_is_not_touched(tmp_path: Path, boot: str) -> None:
    with closing(write_running(tmp_path, WRITES, boot=boot)) as torn:
        if boot == identity.boot_id():
            torn.spool = "another"
        mark = identity.job_mark(torn.spool, JOB_ID)
        with subprocess.Popen(SLEEP, env={identity.MARK_VARIABLE: mark}) as stranger:
            assert torn.recover()
            assert stranger.poll() is None
            stranger.kill()


def test_a_supervisor_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    """The kernel lets go of its lock before the process is gone."""
    with subprocess.Popen(SLEEP) as supervisor:
        ticks = int(Path(f"/proc/{supervisor.pid}/stat").read_text().rpartition(")")[2].split()[19])
        with closing(
            write_running(tmp_path, WRITES, boot=identity.boot_id(), supervisor=supervisor.pid, start_ticks=ticks)
        ) as torn:
            ending = threading.Timer(0.5, supervisor.kill)
            ending.start()
            assert torn.recover()
            ending.join()
            assert read_whole_log(torn.folder) == WRITES


def test_a_job_whose_supervisor_lives_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is free, so it is held on another file: this is not the folder that it writes to."""
    monkeypatch.setattr(remains, "_DYING_SECONDS", 0.2)
    with subprocess.Popen(SLEEP) as supervisor:
        ticks = int(Path(f"/proc/{supervisor.pid}/stat").read_text().rpartition(")")[2].split()[19])
        with closing(
            write_running(tmp_path, WRITES, boot=identity.boot_id(), supervisor=supervisor.pid, start_ticks=ticks)
        ) as torn:
            before = torn.folder.journal.read_bytes()
            with pytest.raises(SpoolCorrupt, match="lives"):
                torn.recover()
            assert torn.folder.journal.read_bytes() == before
        supervisor.kill()


@pytest.mark.parametrize("links_are_kept", [True, False])
async def test_an_engine_on_a_copy_of_a_state_directory_harms_no_job_of_the_original(
    tmp_path: Path, *, links_are_kept: bool
) -> None:
    original = tmp_path / "original"
    async with Engine(original) as engine:
        job_id = await engine.spawn(shell("echo ready; read line; exec sleep 1000", request_key="key"))
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        second = await engine.spawn(shell(f"echo ready; read line <{gate}; echo $line"))
        for each in (job_id, second):
            await wait_for_output(engine, each, b"ready")
        if links_are_kept:
            subprocess.run(["cp", "-a", original, tmp_path / "copy"], check=True)
        else:
            shutil.copytree(original, tmp_path / "copy", ignore=shutil.ignore_patterns("control"))
        async with Engine(tmp_path / "copy") as copied:
            for each in (job_id, second):
                log = await read_log(copied, each)
                assert log.stdout == b"ready\n"
                assert log.end is not None and isinstance(log.end.cause, Lost)
                assert "is a copy" in log.end.cause.detail
            again = await copied.spawn(shell("exit 4", request_key="another"))
            assert (await read_log(copied, again)).end is not None
        gate.write_text("still here\n")
        log = await read_log(engine, second)
        assert log.stdout == b"ready\nstill here\n"
        assert log.end is not None and log.end.cause == Exited(0)
        await engine.stop(job_id, ME, 0)
        assert (await read_log(engine, job_id)).end is not None
    copies = {identity.read(tmp_path / name / "spool") for name in ("original", "copy")}
    assert len(copies) == 2


async def test_a_job_goes_on_when_its_state_directory_is_moved(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with Engine(tmp_path / "here") as engine:
        first = await engine.spawn(shell(f"echo ready; read line <{gate}; echo $line; exit 5"))
        second = await engine.spawn(shell("echo ready; exec sleep 1000"))
        for each in (first, second):
            await wait_for_output(engine, each, b"ready")
    (tmp_path / "here").rename(tmp_path / "there")
    gate.write_text("on the way\n")
    async with Engine(tmp_path / "there") as engine:
        log = await read_log(engine, first)
        assert log.stdout == b"ready\non the way\n"
        assert log.end is not None and log.end.cause == Exited(5)
        await engine.stop(second, ME, 0)
        end = (await read_log(engine, second)).end
        assert end is not None and isinstance(end.cause, Stopped)
    for each in (first, second):
        wait_unlocked(JobFolder(tmp_path / "there" / "jobs" / each))


def test_an_end_is_noted_as_told_once_in_the_journal(torn: Written) -> None:
    torn.end(in_tail=True)
    with torn.folder.telling(torn.lock, torn.folder.read()):
        assert not torn.folder.read().is_told
    journal = torn.folder.read()
    assert journal.is_told and journal.ended and not journal.rest
