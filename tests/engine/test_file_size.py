"""Files that may not grow (setrlimit(2), RLIMIT_FSIZE): nothing is waited for, and what is there is whole."""

import errno
import os
import resource
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.logs import run, shell
from workerd.engine.capture import Capture
from workerd.engine.engine import Engine
from workerd.engine.errors import ResourcesExhausted
from workerd.engine.folder import JobFolder
from workerd.engine.job import Killed, Stream
from workerd.engine.journal import Fault, JournalWriter
from workerd.engine.reader import LogReader, Output
from workerd.engine.record import RECORD_SIZE
from workerd.engine.spool import SpoolWriter
from workerd.engine.storage import DEFAULT_STORAGE

Limit = Callable[[int], None]


@pytest.fixture
def limit_files() -> Iterator[Limit]:
    """Limits the size of files for this process and those that it starts from then on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_index_that_may_not_grow_takes_the_end_and_the_log_is_whole(tmp_path: Path, limit_files: Limit) -> None:
    limit_files(4000)
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder)
    written = b"0123456789" * 10
    for byte in written[: 4000 // RECORD_SIZE - 2]:
        writer.append(Stream.STDOUT, memoryview(bytes([byte])))
    with pytest.raises(OSError, match="the end of the log") as full:
        writer.append(Stream.STDOUT, memoryview(b"!"))
    assert full.value.errno == errno.EFBIG
    writer.end()
    assert folder.index.stat().st_size <= 4000
    with LogReader(folder) as reader:
        received = b"".join(event.data for event in reader.read() if isinstance(event, Output))
        reader.read()
        assert reader.complete
    assert received == written[: 4000 // RECORD_SIZE - 2]


def test_a_file_system_that_takes_no_larger_file_ends_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says EFBIG without any limit of the process (write(2)); the program's pipes are closed."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    spec = shell("true", working_directory="/").specify("11111111-1111-4111-8111-111111111111", 1, DEFAULT_STORAGE)
    with select.epoll() as epoll:
        capture = Capture(JobFolder(tmp_path), spec, epoll, lambda _: None)
        stdout, stderr = capture.open_pipe(Stream.STDOUT), capture.open_pipe(Stream.STDERR)
        for pipe in (stdout, stderr):
            os.write(pipe, b"printed")
        ready = [pipe for pipe, _ in epoll.poll(0)]
        assert len(ready) == 2
        monkeypatch.setattr(SpoolWriter, "append", refuse)
        for pipe in ready:
            capture.read(pipe)
        assert capture.ended_early == "the log ended at byte 0: its file system takes no larger file"
        assert not capture.waits_for_room
        for pipe in (stdout, stderr):
            with pytest.raises(BrokenPipeError):
                os.write(pipe, b"more")
            os.close(pipe)
        capture.drain()
        capture.end()


async def test_a_job_of_very_many_short_writes_ends_with_a_whole_log(tmp_path: Path) -> None:
    """Its index may be full long before its output is."""
    async with Engine(tmp_path) as engine:
        zygote = engine._launcher._zygote
        assert zygote is not None
        resource.prlimit(zygote.pid, resource.RLIMIT_FSIZE, (16_000, resource.RLIM_INFINITY))
        log = await run(engine, shell("while echo o && echo e >&2; do :; done"))
    assert log.end is not None
    size = len(log.stdout) + len(log.stderr)
    assert log.end.log_ended_early == (
        f"the log ended at byte {size}: a file of the daemon may have 16000 bytes and no more (RLIMIT_FSIZE)"
    )
    assert (log.end.stdout.size_bytes, log.end.stderr.size_bytes) == (len(log.stdout), len(log.stderr))
    assert set(log.stdout) <= set(b"o\n") and set(log.stderr) <= set(b"e\n")
    assert log.end.cause == Killed(signal.SIGPIPE)


async def test_a_spawn_is_refused_where_the_end_of_the_job_could_not_be_written(
    tmp_path: Path, limit_files: Limit
) -> None:
    async with Engine(tmp_path) as engine:
        limit_files(11 << 10)
        with pytest.raises(ResourcesExhausted, match="RLIMIT_FSIZE"):
            await engine.spawn(shell("true"))
        assert list((tmp_path / "jobs").iterdir()) == []


def test_what_is_told_of_a_supervisors_faults_leaves_room_for_the_end(tmp_path: Path, limit_files: Limit) -> None:
    limit_files(16 << 10)
    with (tmp_path / "journal").open("w+b") as file:
        writer = JournalWriter(file.fileno(), "11111111-1111-4111-8111-111111111111", 0)
        for _ in range(30):
            writer.report_fault("x" * 4000)
        with pytest.raises(OSError, match="RLIMIT_FSIZE"):
            writer.append(Fault("x" * 4000))
        assert (tmp_path / "journal").stat().st_size <= 8 << 10
