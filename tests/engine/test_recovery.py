"""A log whose supervisor vanished: what was captured is kept, what is torn is cut, and it gets a true end."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.engine.logs import shell
from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import JobState, JobStatus, Lost, Stream
from workerd.engine.reader import LogReader, Output
from workerd.engine.record import RECORD_SIZE
from workerd.engine.recovery import recover
from workerd.engine.spool import SpoolWriter
from workerd.engine.storage import DEFAULT_STORAGE

WRITES = [(Stream.STDOUT, b"one"), (Stream.STDERR, b"two!"), (Stream.STDOUT, b"three"), (Stream.STDERR, b"4")]


@pytest.fixture
def torn(tmp_path: Path) -> JobFolder:
    """The folder of a job that ran when its supervisor vanished."""
    folder = JobFolder(tmp_path)
    folder.write_spec(shell("true").specify("00000000-0000-4000-8000-000000000000", 1, DEFAULT_STORAGE))
    writer = SpoolWriter(folder)
    for stream, data in WRITES:
        writer.append(stream, memoryview(data))
    writer.close()
    folder.write_status(JobStatus(state=JobState.RUNNING, pid=1, started_ns=5))
    folder.lock.touch()
    return folder


def read(folder: JobFolder) -> list[tuple[Stream, bytes]]:
    with LogReader(folder) as reader:
        events = [event for event in reader.read() if isinstance(event, Output)]
        assert reader.complete
    return [(event.stream, event.data) for event in events]


@pytest.mark.parametrize("cut", range(RECORD_SIZE * (len(WRITES) + 1) + 1))
def test_an_index_cut_anywhere_keeps_every_whole_record(torn: JobFolder, cut: int) -> None:
    torn.index.write_bytes(torn.index.read_bytes()[:cut])
    recover(torn)
    kept = WRITES[: max(0, cut // RECORD_SIZE - 1)]
    assert read(torn) == kept
    status = torn.read_status()
    assert status is not None
    assert status.state is JobState.ENDED
    assert status.end is not None
    assert isinstance(status.end.cause, Lost)
    assert status.end.stdout.size_bytes == sum(len(data) for stream, data in kept if stream is Stream.STDOUT)
    assert torn.output.read_bytes() == b"".join(data for _, data in kept)


def test_a_damaged_record_ends_what_can_be_trusted(torn: JobFolder) -> None:
    index = bytearray(torn.index.read_bytes())
    index[2 * RECORD_SIZE + 9] ^= 1
    torn.index.write_bytes(index)
    recover(torn)
    assert read(torn) == WRITES[:1]


def test_recovering_again_changes_nothing(torn: JobFolder) -> None:
    recover(torn)
    before = [path.read_bytes() for path in (torn.index, torn.output, torn.status)]
    recover(torn)
    assert [path.read_bytes() for path in (torn.index, torn.output, torn.status)] == before


def test_a_job_that_was_seen_to_end_keeps_its_end_and_gets_the_record(torn: JobFolder) -> None:
    recover(torn)
    status = torn.read_status()
    torn.index.write_bytes(torn.index.read_bytes()[:-RECORD_SIZE])
    recover(torn)
    assert torn.read_status() == status
    assert read(torn) == WRITES


def test_records_whose_bytes_never_reached_the_disk_are_cut(torn: JobFolder) -> None:
    with torn.output.open("r+b") as output:
        output.truncate(len(b"onetwo!t"))  # a power cut may take the last bytes and leave their records
    recover(torn)
    assert read(torn) == WRITES[:2]
    assert torn.output.read_bytes() == b"onetwo!"


def test_a_damaged_header_is_left_for_people(torn: JobFolder) -> None:
    index = bytearray(torn.index.read_bytes())
    index[9] ^= 1
    torn.index.write_bytes(index)
    before = {path: path.read_bytes() for path in (torn.index, torn.output, torn.status)}
    with pytest.raises(SpoolCorrupt):
        recover(torn)
    assert {path: path.read_bytes() for path in before} == before


def test_what_is_left_of_a_job_without_a_cgroup_is_found_by_its_environment(torn: JobFolder) -> None:
    mark = f"WORKERD_JOB_ID={torn.path.name}"
    sleep = ["/bin/sleep", "1000"]
    with (
        subprocess.Popen(sleep, env={"WORKERD_JOB_ID": torn.path.name}) as left,
        subprocess.Popen(sleep, env={"A": mark, "WORKERD_JOB_ID": "another"}) as stranger,
    ):
        recover(torn)
        assert left.wait(10) == -signal.SIGKILL
        assert stranger.poll() is None
        stranger.kill()
