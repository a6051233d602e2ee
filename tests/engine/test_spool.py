"""A log that is written and read at once: any interleaving of writes, and of readers at any offset, gives the truth."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import Stream
from workerd.engine.reader import CHUNK_BYTES, LogReader, Output
from workerd.engine.record import RECORD_SIZE
from workerd.engine.spool import SpoolWriter

WRITES = st.tuples(st.just("write"), st.sampled_from(Stream), st.binary(min_size=1, max_size=300))
NEW_READERS = st.tuples(st.just("open"), st.floats(0, 1), st.sets(st.sampled_from(Stream), min_size=1))
STEPS = st.tuples(st.just("read"), st.integers(0, 20), st.integers(0, 4))


@given(st.lists(WRITES | NEW_READERS | STEPS, max_size=60))
def test_every_reader_gets_exactly_what_was_written(steps: list[tuple[str, object, object]]) -> None:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        folder = JobFolder(Path(directory))
        writer = SpoolWriter(folder)
        written: list[tuple[Stream, int]] = []
        readers: list[tuple[LogReader, int, frozenset[Stream], list[Output]]] = []
        for step in steps:
            match step:
                case "write", Stream() as stream, bytes(data):
                    writer.append(stream, memoryview(data))
                    written += [(stream, byte) for byte in data]
                case "open", float(fraction), set(wanted):
                    start, streams = int(fraction * len(written)), frozenset(wanted)
                    reader = stack.enter_context(LogReader(folder, streams))
                    reader.seek(start)
                    readers.append((reader, start, streams, []))
                case "read", int(which), int(count) if readers:
                    reader, _, _, got = readers[which % len(readers)]
                    for event, _ in zip(reader.read(), range(count), strict=False):
                        assert isinstance(event, Output)
                        got.append(event)
        writer.end()
        for reader, start, streams, got in readers:
            while not reader.complete:
                for event in reader.read():
                    assert isinstance(event, Output)
                    got.append(event)
            assert list(reader.read()) == []
            _check(written, start, streams, got)


def _check(written: list[tuple[Stream, int]], start: int, streams: frozenset[Stream], got: list[Output]) -> None:
    wanted = [(offset, *written[offset]) for offset in range(start, len(written)) if written[offset][0] in streams]
    assert [
        (event.offset + position, event.stream, byte) for event in got for position, byte in enumerate(event.data)
    ] == wanted
    for event in got:
        before = sum(stream is event.stream for stream, _ in written[: event.offset])
        assert event.stream_offset == before
        assert len(event.data) <= CHUNK_BYTES


def test_neighbouring_writes_of_one_stream_come_as_few_events(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder)
    for _ in range(1000):
        writer.append(Stream.STDOUT, memoryview(b"a line\n"))
    writer.end()
    with LogReader(folder) as reader:
        assert len(list(reader.read())) == 1


def test_a_record_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder)
    writer.append(Stream.STDOUT, memoryview(b"first"))
    whole = folder.index.read_bytes()
    writer.append(Stream.STDOUT, memoryview(b"second"))
    complete = folder.index.read_bytes()
    folder.index.write_bytes(complete[: len(whole) + 17])
    with LogReader(folder) as reader:
        assert [event.data for event in reader.read() if isinstance(event, Output)] == [b"first"]
        folder.index.write_bytes(complete)
        assert [event.data for event in reader.read() if isinstance(event, Output)] == [b"second"]


def test_a_damaged_record_in_the_middle_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder)
    for data in (b"first", b"second", b"third"):
        writer.append(Stream.STDOUT, memoryview(data))
    writer.end()
    index = bytearray(folder.index.read_bytes())
    index[2 * RECORD_SIZE + 9] ^= 1
    folder.index.write_bytes(index)
    with LogReader(folder) as reader:
        assert [event.data for event in reader.read() if isinstance(event, Output)] == [b"first"]
        with pytest.raises(SpoolCorrupt):
            list(reader.read())
