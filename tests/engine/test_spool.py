"""A log that is written and read at once: any interleaving of writes, and of readers at any offset, gives the truth."""

import errno
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import ANY

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import Stream
from workerd.engine.reader import CHUNK_BYTES, Gap, LogReader, Output, _Batch, measure
from workerd.engine.record import RECORD_SIZE, Record
from workerd.engine.spool import SpoolWriter

WRITES = st.tuples(st.just("write"), st.sampled_from(Stream), st.binary(min_size=1, max_size=300))
NEW_READERS = st.tuples(st.just("open"), st.floats(0, 1), st.sets(st.sampled_from(Stream), min_size=1))
STEPS = st.tuples(st.just("read"), st.integers(0, 20), st.integers(0, 4), st.integers(1, 700))


LIMITS = st.sampled_from([0, 200, 1500])
Events = list[Output | Gap]


@given(st.lists(WRITES | NEW_READERS | STEPS, max_size=60), LIMITS)
def test_every_reader_gets_exactly_what_was_written(steps: list[tuple[str, object, object]], limit: int) -> None:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        folder = JobFolder(Path(directory))
        writer = SpoolWriter(folder, limit)
        written: list[tuple[Stream, int]] = []
        readers: list[tuple[LogReader, int, frozenset[Stream], Events]] = []
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
                case "read", int(which), int(count), int(most) if readers:
                    reader, _, _, got = readers[which % len(readers)]
                    for _ in range(count):
                        events = reader.read(most)
                        assert sum(len(event.data) for event in events if isinstance(event, Output)) <= most
                        got += events
        writer.end()
        kept_from = measure(folder).kept_from
        assert kept_from == 0 if limit == 0 else len(written) - kept_from <= max(limit, 600)
        for reader, start, streams, got in readers:
            while not reader.complete:
                got.extend(reader.read())
            assert reader.read() == []
            _check(written, start, streams, got, kept_from)


def _check(
    written: list[tuple[Stream, int]], start: int, streams: frozenset[Stream], got: Events, kept_from: int
) -> None:
    """Compare with the truth: all of it, but for what was released, and each gap says so."""
    missing: set[int] = set()
    position = start
    for event in got:
        if isinstance(event, Gap):
            assert position <= event.start < event.end <= kept_from
            missing.update(range(event.start, event.end))
            position = event.end
        else:
            assert position <= event.offset
            position = event.offset + len(event.data)
            assert event.stream_offset == sum(stream is event.stream for stream, _ in written[: event.offset])
            assert len(event.data) <= CHUNK_BYTES
    assert [
        (event.offset + place, event.stream, byte)
        for event in got
        if isinstance(event, Output)
        for place, byte in enumerate(event.data)
    ] == [
        (offset, *written[offset])
        for offset in range(start, len(written))
        if written[offset][0] in streams and offset not in missing
    ]


def test_a_log_over_its_limit_gives_the_disk_back(tmp_path: Path) -> None:
    limit = 4 << 20
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder, limit)
    block = random.Random(1).randbytes(100_000)
    for number in range(400):
        writer.append(Stream(number % 2 + 1), memoryview(block))
        for _ in range(200):  # short lines: their records are larger than they
            writer.append(Stream.STDOUT, memoryview(b"x"))
        # Blocks that are released in part stay: one at each file's beginning.
        assert sum(path.stat().st_blocks * 512 for path in (folder.output, folder.index)) <= limit + (1 << 17)
    writer.end()
    assert folder.output.stat().st_size == writer.size == 400 * 100_200
    digest = xxhash.xxh3_128()
    for number in range(400):
        if number % 2 == 0:
            digest.update(block)
        digest.update(b"x" * 200)
    assert writer.summary(Stream.STDOUT).xxh3_128 == digest.hexdigest()
    with LogReader(folder) as reader:
        events = reader.read()
        while not reader.complete:
            events += reader.read()
    assert isinstance(events[0], Gap)
    assert events[0].start == 0
    assert limit // 2 < writer.size - events[0].end <= limit
    assert not any(isinstance(event, Gap) for event in events[1:])


@pytest.mark.parametrize("moment", ["between two reads", "after the records, before the bytes", "after the bytes"])
def test_a_reader_that_is_overtaken_finds_a_gap_and_goes_on(tmp_path: Path, moment: str) -> None:
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder, 2000)

    def overtake() -> None:
        for _ in range(10):
            writer.append(Stream.STDOUT, memoryview(b"c" * 500))

    class Overtaken(LogReader):
        def _records(self, batch: _Batch) -> Iterator[Record]:
            yield from super()._records(batch)
            if moment == "after the records, before the bytes" and self.position == 500:
                overtake()

    with Overtaken(folder) as reader:
        writer.append(Stream.STDOUT, memoryview(b"a" * 500))
        assert reader.read() == [Output(0, Stream.STDOUT, ANY, 0, b"a" * 500)]
        writer.append(Stream.STDERR, memoryview(b"b" * 500))
        if moment == "between two reads":
            overtake()
        events = reader.read()
        if moment == "after the bytes":
            assert events == [Output(500, Stream.STDERR, ANY, 0, b"b" * 500)]
            overtake()
            events = reader.read()
        (gap,) = events
        assert isinstance(gap, Gap)
        assert gap.start == reader.position - (gap.end - gap.start) == (1000 if moment == "after the bytes" else 500)
        after = reader.read()[0]
        assert isinstance(after, Output)
        assert (after.offset, set(after.data)) == (gap.end, {ord("c")})


def test_what_had_no_room_is_written_once_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder)
    pwrite = os.pwrite
    room = 0

    def fill(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal room
        written = pwrite(descriptor, data[:room], offset) if room else 0
        room -= written
        if not written:
            raise OSError(errno.ENOSPC, "full")
        return written

    monkeypatch.setattr(os, "pwrite", fill)
    for bytes_left in (7, 11, 11 + 5):  # some of the bytes fit, all of them and no record, and some of the record
        room = bytes_left
        with pytest.raises(OSError):
            writer.append(Stream.STDOUT, memoryview(b"all of this"))
    room = 1000
    writer.append(Stream.STDOUT, memoryview(b"all of this"))
    writer.end()
    with LogReader(folder) as reader:
        assert [event.data for event in reader.read() if isinstance(event, Output)] == [b"all of this"]
        assert reader.complete
    assert folder.output.read_bytes() == b"all of this"


def test_neighbouring_writes_of_one_stream_come_as_few_events(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder)
    for _ in range(1000):
        writer.append(Stream.STDOUT, memoryview(b"a line\n"))
    writer.end()
    with LogReader(folder) as reader:
        assert len(reader.read()) == 1


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
        assert not reader.exhausted  # or whoever follows would wait for what comes next
        with pytest.raises(SpoolCorrupt):
            reader.read()


def test_output_of_other_streams_is_passed_over_without_being_read(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    writer = SpoolWriter(folder)
    writer.append(Stream.STDERR, memoryview(b"first"))
    for _ in range(40):
        writer.append(Stream.STDOUT, memoryview(bytes(2 * CHUNK_BYTES)))
    writer.append(Stream.STDERR, memoryview(b"last"))
    writer.end()
    with LogReader(folder, frozenset({Stream.STDERR})) as reader:
        events: Events = []
        tracemalloc.start()
        try:
            while not reader.complete:
                events += reader.read()
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert [event.data for event in events if isinstance(event, Output)] == [b"first", b"last"]
    assert most_bytes < 4 * CHUNK_BYTES
