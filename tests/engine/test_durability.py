"""When a supervisor forces what to the disk: seen from its own calls of fsync(2) and fdatasync(2)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.logs import shell
from workerd.engine.folder import JobFolder
from workerd.engine.index import count_records
from workerd.engine.job import Durability, Exited
from workerd.engine.storage import Storage

SUPERVISE = """
import os, sys
from pathlib import Path
from workerd.engine import capture, supervisor

capture._SYNC_SECONDS = 0.2
folder, lock, reply = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def noting(call):
    def note(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        records = os.stat(folder / "index").st_size // 40
        os.write(calls, f"{name} {records}\\n".encode())
        call(descriptor)
    return note

calls = os.open(folder.parent / "calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.fsync, os.fdatasync = noting(os.fsync), noting(os.fdatasync)
exec(sys.argv[4])
supervisor.main(folder, lock, reply)
"""


FAIL_MEANWHILE = """
import errno, threading

def failing(call):
    def fail(descriptor):
        call(descriptor)
        if threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    return fail

os.fdatasync = failing(os.fdatasync)
"""


NO_THREADS = """
import threading

def fail(thread):
    raise RuntimeError("can't start new thread")

threading.Thread.start = fail
"""


def supervise(folder: JobFolder, script: str, durability: Durability, before: str = "") -> list[tuple[str, int]]:
    """Run a job and give the files that were forced to the disk, each with the number of records at that time.

    Args:
        before: what its supervisor is to execute first.
    """
    folder.path.mkdir()
    spec = shell(script, working_directory="/").specify(folder.path.name, 1, Storage(durability=durability))
    folder.write_spec(spec)
    lock = folder.try_lock()
    assert lock is not None
    answer, reply = os.pipe()
    subprocess.run(
        [sys.executable, "-c", SUPERVISE, str(folder.path), str(lock), str(reply), before],
        pass_fds=[lock, reply],
        check=True,
        timeout=60,
    )
    for descriptor in (lock, answer, reply):
        os.close(descriptor)
    lines = (folder.path.parent / "calls").read_text().splitlines()
    return [(line.split()[0], int(line.split()[1])) for line in lines]


@pytest.mark.parametrize("durability", Durability)
def test_the_end_is_told_only_when_all_is_on_the_disk(tmp_path: Path, durability: Durability) -> None:
    folder = JobFolder(tmp_path / "00000000-0000-4000-8000-000000000000")
    calls = supervise(folder, "echo out; echo error >&2", durability)
    with folder.index.open("rb") as index:
        records = count_records(index.fileno())
    last = records - 1  # before the end record, which tells readers that the job has ended
    assert calls == [
        ("output", last),
        ("index", last),
        ("status.new", last),
        (folder.path.name, last),
        ("output", records),
        ("index", records),
    ]


def test_interval_forces_a_growing_log_to_the_disk_meanwhile(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "00000000-0000-4000-8000-000000000000")
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"
    calls = supervise(folder, script, Durability.INTERVAL)
    meanwhile = [name for name, records in calls if records < 7]
    assert meanwhile[:4] == ["output", "index", "spec", folder.path.name]
    assert meanwhile.count("output") >= 2


def test_a_disk_that_fails_each_time_is_told_of_once(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "00000000-0000-4000-8000-000000000000")
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"
    calls = supervise(folder, script, Durability.INTERVAL, FAIL_MEANWHILE)
    assert [name for name, records in calls if records < 7].count("output") >= 2
    assert folder.read_fault() == "the log could not be forced to the disk: [Errno 5] Input/output error\n"


def test_a_job_that_takes_every_process_there_is_keeps_its_supervisor(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "00000000-0000-4000-8000-000000000000")
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"
    calls = supervise(folder, script, Durability.INTERVAL, NO_THREADS)
    assert [name for name, _ in calls][-2:] == ["output", "index"]
    status = folder.read_status()
    assert status is not None
    assert status.end is not None
    assert status.end.cause == Exited(0)
    assert folder.read_fault() == "the log could not be forced to the disk: can't start new thread\n"


def test_exit_does_so_at_the_end_alone(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "00000000-0000-4000-8000-000000000000")
    calls = supervise(folder, "for i in 1 2 3; do echo $i; sleep 0.3; done", Durability.EXIT)
    assert [records for _, records in calls] == [4, 4, 4, 4, 5, 5]
