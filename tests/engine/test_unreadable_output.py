"""A pipe that cannot be read: a job may put a page of a file there that its file system fails to read (splice(2))."""

import errno
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.logs import shell
from workerd.engine.capture import Capture
from workerd.engine.folder import JobFolder
from workerd.engine.job import Stream
from workerd.engine.reader import LogReader, Output
from workerd.engine.storage import DEFAULT_STORAGE


@pytest.fixture
def epoll() -> Iterator[select.epoll]:
    with select.epoll() as epoll:
        yield epoll


def test_a_stream_that_cannot_be_read_ends_with_the_reason_and_the_other_goes_on(
    tmp_path: Path, epoll: select.epoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = shell("true", working_directory="/").specify("11111111-1111-4111-8111-111111111111", 1, DEFAULT_STORAGE)
    capture = Capture(JobFolder(tmp_path), spec, epoll, lambda _: None)
    stdout, stderr = capture.open_pipe(Stream.STDOUT), capture.open_pipe(Stream.STDERR)
    reads = {}
    for stream, pipe in ((Stream.STDOUT, stdout), (Stream.STDERR, stderr)):
        os.write(pipe, b"before")
        [(reads[stream], _)] = epoll.poll(0)
        capture.read(reads[stream])
    readv = os.readv

    def fail(pipe: int, buffers: list[memoryview]) -> int:
        if pipe == reads[Stream.STDOUT]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return readv(pipe, buffers)

    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", fail)
        os.write(stdout, b"unreadable")
        os.write(stderr, b" and after")
        for pipe, _ in epoll.poll(0):
            capture.read(pipe)
    assert capture.ended_early == "stdout ended at byte 6: what the job put into it cannot be read: Input/output error"
    with pytest.raises(BrokenPipeError):
        os.write(stdout, b"more")
    for pipe in (stdout, stderr):
        os.close(pipe)
    capture.drain()
    capture.end()
    with LogReader(JobFolder(tmp_path)) as reader:
        events = [event for event in reader.read() if isinstance(event, Output)]
    read = {stream: b"".join(event.data for event in events if event.stream is stream) for stream in Stream}
    assert read == {Stream.STDOUT: b"before", Stream.STDERR: b"before and after"}
