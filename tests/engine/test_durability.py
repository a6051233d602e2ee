"""When a supervisor forces what to the disk: seen from its own calls of fsync(2) and fdatasync(2)."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.logs import shell
from workerd.engine import identity
from workerd.engine.files import replacing
from workerd.engine.folder import JobFolder
from workerd.engine.job import Durability, Exited, Stream
from workerd.engine.reply import GO
from workerd.engine.spool import SpoolWriter
from workerd.engine.storage import Storage

JOB = "00000000-0000-4000-8000-000000000000"
SUPERVISE = """
import os, select, sys
from pathlib import Path
from workerd.engine import capture, supervisor
from workerd.engine.folder import JobFolder

capture._SYNC_SECONDS = 0.2
job_id, directory, lock, reply, answer = sys.argv[1], *map(int, sys.argv[2:6])
folder = JobFolder(Path(f"/proc/self/fd/{os.dup(directory)}"), job_id)
calls = os.open(os.path.join(folder.path, "..", "calls"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

def noting(call):
    def note(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        journal, records = folder.read(), os.stat(folder.index).st_size // 40
        is_answered = bool(select.select([answer], [], [], 0)[0])
        state = "none" if journal.status is None else journal.status.state
        os.write(calls, f"{name} {records} {state} {is_answered}\\n".encode())
        call(descriptor)
    return note

def may_go_on(reply, asked=supervisor._may_go_on):
    try:
        return asked(reply)
    finally:
        os.read(answer, 64)

supervisor._may_go_on = may_go_on
os.fsync, os.fdatasync = noting(os.fsync), noting(os.fdatasync)
exec(sys.argv[6])
supervisor.main(job_id, directory, lock, reply)
"""


NOT_MEANWHILE = "capture._SYNC_SECONDS = 60"


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


FAIL_AT_FIRST = """
import errno

def failing(call):
    def fail(descriptor):
        os.fsync = call
        call(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return fail

os.fsync = failing(os.fsync)
"""


NO_THREADS = """
import _thread, threading

def fail(*_):
    raise RuntimeError("can't start new thread")

_thread.start_new_thread = threading._start_new_thread = fail
"""


THREADS_THAT_NEVER_BEGIN = """
import _thread, threading
_thread.start_new_thread = threading._start_new_thread = lambda *_: 1
"""


HANG_MEANWHILE = """
import threading, time

def hanging(call):
    def hang(descriptor):
        while threading.current_thread() is not threading.main_thread():
            time.sleep(1000)
        call(descriptor)
    return hang

os.fdatasync = hanging(os.fdatasync)
capture._DISK_SECONDS = 0.5
"""


class Call(NamedTuple):
    """A file that was forced to the disk, and how the job stood just before.

    Attributes:
        records: how many the index had.
        state: where the job stood, as the journal had it.
        answered: whether the spawn had been answered.
    """

    name: str
    records: int
    state: str
    answered: bool


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """Where a job's folder will be, below one with a name that can be told from others."""
    (tmp_path / "jobs").mkdir()
    return JobFolder(tmp_path / "jobs" / JOB)


def supervise(folder: JobFolder, script: str, durability: Durability, before: str = "") -> list[Call]:
    """Run a job and return what its supervisor forced to the disk.

    Args:
        before: what its supervisor is to execute first.
    """
    identity_file = folder.path.parent.parent / "spool"
    spec = shell(script, working_directory="/").specify(JOB, 1, Storage(durability=durability))
    lock = folder.create(spec, identity.establish(identity_file), identity_file)
    directory = os.open(folder.path, os.O_RDONLY)
    answer, reply = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with answer, reply:
        answer.send(GO)
        descriptors = (directory, lock, reply.fileno(), answer.fileno())
        subprocess.run(
            [sys.executable, "-c", SUPERVISE, JOB, *map(str, descriptors), before],
            pass_fds=descriptors,
            check=True,
            timeout=60,
        )
    os.close(directory)
    os.close(lock)
    lines = [line.split() for line in (folder.path.parent / "calls").read_text().splitlines()]
    return [Call(name, int(records), state, answered == "True") for name, records, state, answered in lines]


NAMES = ["journal", JOB, "jobs"]  # nothing of the job is on the disk for certain before these have been forced there
LONG = "head -c 3000 /dev/zero; head -c 3000 /dev/zero >&2"  # more than the journal takes


@pytest.mark.parametrize("script", ["exec sleep 0.1", "echo out; echo error >&2", LONG])
def test_a_spawn_is_answered_under_interval_when_the_job_is_on_the_disk(folder: JobFolder, script: str) -> None:
    calls = supervise(folder, script, Durability.INTERVAL)
    assert [(call.name, call.state, call.answered) for call in calls[:3]] == [
        (name, "running", False) for name in NAMES
    ]
    assert all(call.answered for call in calls[3:])


@pytest.mark.parametrize("script", ["true", "echo out; echo error >&2", LONG])
def test_a_spawn_waits_for_no_disk_under_exit_which_comes_right_after_it(folder: JobFolder, script: str) -> None:
    calls = supervise(folder, script, Durability.EXIT)
    assert [(call.name, call.state) for call in calls[:3]] == [(name, "running") for name in NAMES]
    assert all(call.answered for call in calls)


@pytest.mark.parametrize("durability", Durability)
def test_the_end_is_told_only_when_all_is_on_the_disk(folder: JobFolder, durability: Durability) -> None:
    """Its end record tells readers that the job has ended: what they can know by then is on the disk."""
    calls = supervise(folder, LONG, durability, NOT_MEANWHILE)[len(NAMES) :]
    with folder.open_index() as index:
        before = index.count() - 1
    assert [(call.name, call.state) for call in calls] == [
        ("output", "running"),
        ("index", "running"),
        ("journal", "ended"),
    ]
    assert {call.records for call in calls} == {before}


@pytest.mark.parametrize("durability", Durability)
def test_a_short_log_takes_the_end_no_more_than_one_file(folder: JobFolder, durability: Durability) -> None:
    """The journal has what of the log is not on the disk."""
    calls = supervise(folder, "echo out; echo error >&2", durability, NOT_MEANWHILE)[len(NAMES) :]
    assert [call.name for call in calls] == ["journal"]
    tail = folder.read().tail
    assert tail is not None
    assert (tail.output_offset, sorted(tail.output.split())) == (0, [b"error", b"out"])
    with folder.open_index() as index:
        assert {call.records for call in calls} == {index.count() - 1}
        assert (tail.index_offset, tail.index) == (0, index.read_batch(0, 3))


def test_interval_forces_a_growing_log_to_the_disk_meanwhile(folder: JobFolder) -> None:
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"
    calls = supervise(folder, script, Durability.INTERVAL)
    meanwhile = [call.name for call in calls if call.answered and call.state == "running"]
    assert meanwhile[:4] == ["output", "index"] * 2
    assert [call.name for call in calls if call.state == "ended"] == ["journal"]
    tail = folder.read().tail
    assert tail is not None and tail.output_offset >= len(b"1\n2\n")


def test_what_comes_while_the_disk_is_waited_for_is_not_taken_to_be_on_it(
    folder: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.path.mkdir()
    log = SpoolWriter(folder)
    log.append(Stream.STDOUT, memoryview(b"before"))
    force = os.fdatasync

    def force_slowly(descriptor: int) -> None:
        force(descriptor)
        log.append(Stream.STDOUT, memoryview(b"meanwhile"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", force_slowly)
        log.sync()
    tail = log.tail()
    log.close()
    assert tail is not None
    assert (tail.output_offset, tail.output) == (len(b"before"), b"meanwhile" * 2)


def test_a_disk_that_fails_each_time_is_told_of_once(folder: JobFolder) -> None:
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"
    calls = supervise(folder, script, Durability.INTERVAL, FAIL_MEANWHILE)
    assert [call.name for call in calls if call.state == "running"].count("output") >= 2
    assert folder.read_fault() == "the log could not be forced to the disk: [Errno 5] Input/output error\n"
    tail = folder.read().tail  # nothing of it is there for certain
    assert tail is not None and tail.output == b"1\n2\n3\n4\n5\n6\n"


def test_a_disk_that_fails_before_the_answer_is_asked_again_for_the_end(folder: JobFolder) -> None:
    """The program runs by then: it is too late to say that it was not started."""
    calls = supervise(folder, "echo out", Durability.INTERVAL, FAIL_AT_FIRST)
    assert folder.read_fault() == "the job could not be forced to the disk: [Errno 5] Input/output error\n"
    assert [call.name for call in calls if call.state == "ended"] == NAMES


def test_a_job_that_takes_every_process_there_is_keeps_its_supervisor(folder: JobFolder) -> None:
    script = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done"
    calls = supervise(folder, script, Durability.INTERVAL, NO_THREADS)
    assert [call.name for call in calls] == [*NAMES, "journal"]
    status = folder.read_status()
    assert status is not None
    assert status.end is not None
    assert status.end.cause == Exited(0)
    assert folder.read_fault() == "the log could not be forced to the disk: can't start new thread\n"


@pytest.mark.parametrize("fault", [THREADS_THAT_NEVER_BEGIN, HANG_MEANWHILE], ids=["never begins", "hangs"])
def test_a_thread_that_forces_the_log_to_the_disk_is_not_waited_for_for_ever(folder: JobFolder, fault: str) -> None:
    """It may get no memory to begin with, or its call may not return: the end is forced to the disk without it."""
    calls = supervise(folder, "for i in 1 2 3; do echo $i; sleep 0.2; done", Durability.INTERVAL, fault)
    assert calls[-1].name == "journal"
    status = folder.read_status()
    assert status is not None and status.end is not None
    assert status.end.cause == Exited(0)


def test_exit_forces_a_log_to_the_disk_at_the_end_alone(folder: JobFolder) -> None:
    calls = supervise(folder, "for i in 1 2 3; do echo $i; sleep 0.3; done", Durability.EXIT)
    assert [(call.name, call.state) for call in calls[len(NAMES) :]] == [("journal", "ended")]


def test_a_replaced_file_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut would leave one of that name that is empty."""
    path = tmp_path / "file"
    path.write_text("old")
    forced: list[tuple[str, str]] = []
    force = os.fsync

    def note(descriptor: int) -> None:
        forced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, path.read_text()))
        force(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with replacing(path) as file:
        file.write(b"new")
    assert forced == [("file.new", "old"), (tmp_path.name, "new")]
