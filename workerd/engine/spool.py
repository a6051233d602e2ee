"""The writing side of a log: what a supervisor appends output to.

A log that has a limit keeps its newest output. What goes is released from the disk as a hole at the beginning of
`output` and of `index` (fallocate(2), FALLOC_FL_PUNCH_HOLE), so that every offset and every record's place stay what
they were. The header says so first and the holes come after: a reader that finds blanks finds out why.
"""

import os
import time
from collections.abc import Iterator

import xxhash

from workerd.engine import linux
from workerd.engine.folder import JobFolder
from workerd.engine.index import find_record, read_record
from workerd.engine.job import FORMAT_VERSION, Stream, StreamSummary
from workerd.engine.record import MAX_LENGTH, RECORD_SIZE, Kind, Record, pack, pack_fields

_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_HOLE_ALIGNMENT = 1 << 16  # a file system gives back whole blocks: none has larger ones


class SpoolWriter:
    """Appends the output of one job, in the order of the calls. There is one writer for a log, ever.

    Args:
        limit_bytes: how much of the disk the log may take, its index included; zero for any amount. The last two
            appends are kept in any case.

    Raises:
        OSError: from every method that writes. Nothing is lost or half done then: the same call may be made again.
    """

    def __init__(self, folder: JobFolder, limit_bytes: int = 0) -> None:
        self.size = 0
        self._limit = limit_bytes
        self._output = os.open(folder.output, _NEW, 0o600)
        self._index = os.open(folder.index, _NEW, 0o600)
        self._sizes = dict.fromkeys(Stream, 0)
        self._digests = {stream: xxhash.xxh3_128() for stream in Stream}
        self._time_ns = 0
        self._created_ns = self._now()
        self._records = 1
        self._first_kept = 1
        self._released = 0
        self._write_header(0)

    def append(self, stream: Stream, data: memoryview) -> None:
        """Append what was read from one stream: first the bytes, then the record that says so."""
        length = len(data)
        if length > MAX_LENGTH:
            raise ValueError(f"{length} bytes do not fit one record")
        if self._limit and self._kept(self._first_kept, self._released) + length + RECORD_SIZE > self._limit:
            self._release(length)
        time_ns = self._now()
        _write_at(self._output, data, self.size)
        self._write_record(pack_fields(Kind.OUTPUT, stream, self.size, length, self._sizes[stream], time_ns))
        self._digests[stream].update(data)
        self._sizes[stream] += length
        self.size += length

    def summary(self, stream: Stream) -> StreamSummary:
        """Tell what one stream has amounted to so far, released or not."""
        return StreamSummary(self._sizes[stream], self._digests[stream].hexdigest())

    def sync(self) -> None:
        """Wait until everything that was appended is on the disk (fdatasync(2)), the bytes before their records."""
        os.fdatasync(self._output)
        os.fdatasync(self._index)

    def end(self) -> None:
        """Say that nothing will follow."""
        self._write_record(pack(Record(Kind.END, None, self.size, 0, 0, self._now())))

    def close(self) -> None:
        """Close the files."""
        os.close(self._output)
        os.close(self._index)

    def _kept(self, number: int, offset: int) -> int:
        """Tell how many bytes the log takes from a record on, whose first byte is at an offset."""
        return self.size - offset + (self._records - number) * RECORD_SIZE

    def _release(self, length: int) -> None:
        """Release the oldest output: enough for so many bytes, and an eighth of the limit, not to come soon again."""
        room = self._limit - self._limit // 8 - length - RECORD_SIZE
        # The last record is kept in any case: it says how long the log is.
        numbers = range(self._first_kept, self._records - 1)
        number = find_record(self._index, numbers, lambda number, record: self._kept(number, record.offset) <= room)
        if number == self._first_kept or not numbers:
            return
        record = read_record(self._index, number)
        if record is None:
            raise AssertionError(f"record {number} was written, and does not check")
        self._write_header(number)
        _punch(self._output, self._released, record.offset)
        _punch(self._index, self._first_kept * RECORD_SIZE, number * RECORD_SIZE, keep=RECORD_SIZE)
        self._first_kept, self._released = number, record.offset

    def _write_header(self, first_kept: int) -> None:
        header = Record(Kind.HEADER, None, FORMAT_VERSION, 0, first_kept, self._created_ns)
        _write_at(self._index, memoryview(pack(header)), 0)

    def _write_record(self, data: bytes) -> None:
        _write_at(self._index, memoryview(data), self._records * RECORD_SIZE)
        self._records += 1

    def _now(self) -> int:
        """Read the clock, never backwards within one log."""
        self._time_ns = max(self._time_ns, time.time_ns())
        return self._time_ns


def summarize(output: int, records: Iterator[Record]) -> dict[Stream, StreamSummary]:
    """Digest a log that its writer could not finish.

    Args:
        output: a descriptor of the log's output file.
        records: the log's output records, in order. When they do not begin at offset zero, nobody can tell the digests:
            they are empty.
    """
    sizes = dict.fromkeys(Stream, 0)
    digests = {stream: xxhash.xxh3_128() for stream in Stream}
    whole = True
    last = None
    for record in records:
        if record.stream is None:
            continue
        if last is None and record.offset > 0:
            whole = False
        if whole:
            digests[record.stream].update(os.pread(output, record.length, record.offset))
        last = record
    if last is not None:
        sizes = {stream: last.stream_size(stream) for stream in Stream}
    return {stream: StreamSummary(sizes[stream], digests[stream].hexdigest() if whole else "") for stream in Stream}


def _punch(descriptor: int, start: int, end: int, keep: int = 0) -> None:
    """Release a range of a file, with what an earlier call left of a block before it, but for `keep` bytes."""
    start = max(keep, start - start % _HOLE_ALIGNMENT)
    if end > start:
        linux.punch_hole(descriptor, start, end - start)


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written
