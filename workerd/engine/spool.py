"""The writing side of a log: what a supervisor appends output to.

A log that has a limit keeps its newest output. What goes is released from the disk as a hole at the beginning of
`output` and of `index` (fallocate(2), FALLOC_FL_PUNCH_HOLE), so that every offset and every record's place stay what
they were. The header says so first and the holes come after: a reader that finds blanks finds out why.
"""

import errno
import os
import sys
import time

import xxhash

from workerd.engine import linux
from workerd.engine.files import max_file_bytes
from workerd.engine.folder import JobFolder
from workerd.engine.index import IndexFile
from workerd.engine.job import FORMAT_VERSION, Stream, StreamSummary
from workerd.engine.journal import TAIL_BYTES, LogTail
from workerd.engine.record import MAX_LENGTH, RECORD_SIZE, CheckedCodec, Kind, Record, checksum

_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_OUTPUT = int(Kind.OUTPUT)  # `append` is on the way of every byte: an enum's member costs more to look up
_HOLE_ALIGNMENT = 1 << 16  # a file system gives back whole blocks: none has larger ones


class SpoolWriter:
    """Appends the output of one job, in the order of the calls. There is one writer for a log, ever.

    Args:
        limit_bytes: how much of the disk the log may take, its index included; zero for any amount. The last two
            appends are kept in any case.

    Raises:
        OSError: from every method that writes. Nothing is lost or half done then: the same call may be made again.
            EFBIG: a file may not grow; there is still room for the end.
    """

    def __init__(self, folder: JobFolder, limit_bytes: int = 0) -> None:
        self.size = 0
        self._limit = limit_bytes
        self._codec = CheckedCodec(folder.job_id)
        self._pack = self._codec.pack_fields
        self._output = os.open(folder.output, _NEW, 0o600)
        self._index = IndexFile(folder.index, self._codec, _NEW)
        self._sizes = dict.fromkeys(Stream, 0)
        self._digests = {stream: xxhash.xxh3_128() for stream in Stream}
        self._time_ns = 0
        self._created_ns = self._now()
        self._records = 1
        self._most_records = (max_file_bytes() or sys.maxsize) // RECORD_SIZE
        self._first_kept = 1
        self._released = 0
        self._synced = 0, 0  # how many bytes and how many records are on the disk for certain
        self._write_header(0)

    def append(self, stream: Stream, data: memoryview) -> None:
        """Append what was read from one stream: first the bytes, then the record that says so."""
        length = len(data)
        if length > MAX_LENGTH:
            raise ValueError(f"{length} bytes do not fit one record")
        if self._records + 2 > self._most_records:
            raise OSError(errno.EFBIG, "the rest of the index is kept for the end of the log")
        if self._limit and self._kept(self._first_kept, self._released) + length + RECORD_SIZE > self._limit:
            self._release(length)
        time_ns = self._now()
        _write_at(self._output, data, self.size)
        stream_offset = self._sizes[stream]
        self._write_record(
            self._pack(self._records, _OUTPUT, stream, self.size, length, stream_offset, time_ns, checksum(data))
        )
        self._digests[stream].update(data)
        self._sizes[stream] = stream_offset + length
        self.size += length

    def summary(self, stream: Stream) -> StreamSummary:
        """Return what one stream has amounted to so far, released or not."""
        return StreamSummary(self._sizes[stream], self._digests[stream].hexdigest())

    def sync(self) -> None:
        """Wait until everything that was appended is on the disk (fdatasync(2))."""
        written = self.size, self._records
        os.fdatasync(self._output)
        os.fdatasync(self._index.descriptor)
        self._synced = written

    def tail(self) -> LogTail | None:
        """Return what of the log is not on the disk for certain, for the journal; None when it is too long for that."""
        size, records = self._synced
        output_bytes, index_bytes = self.size - size, (self._records - records) * RECORD_SIZE
        if self._first_kept > 1 or max(output_bytes, index_bytes) > TAIL_BYTES:
            return None
        output = os.pread(self._output, output_bytes, size)
        index = os.pread(self._index.descriptor, index_bytes, records * RECORD_SIZE)
        if (len(output), len(index)) != (output_bytes, index_bytes):
            return None
        return LogTail(size, output, records * RECORD_SIZE, index)

    def end(self) -> None:
        """Write that nothing will follow."""
        self._write_record(self._codec.pack(self._records, Record(Kind.END, None, self.size, 0, 0, self._now())))

    def close(self) -> None:
        """Close the files."""
        os.close(self._output)
        self._index.close()

    def _kept(self, number: int, offset: int) -> int:
        """Return how many bytes the log takes from a record on, whose first byte is at an offset."""
        return self.size - offset + (self._records - number) * RECORD_SIZE

    def _release(self, length: int) -> None:
        """Release the oldest output: enough for so many bytes, and an eighth of the limit, not to come soon again."""
        room = self._limit - self._limit // 8 - length - RECORD_SIZE
        # The last record is kept in any case: it says how long the log is.
        numbers = range(self._first_kept, self._records - 1)
        number = self._index.find(numbers, lambda number, record: self._kept(number, record.offset) <= room)
        if number == self._first_kept or not numbers:
            return
        record = self._index.read(number)
        if record is None:
            raise AssertionError(f"record {number} was written, and does not check")
        self._write_header(number)
        os.fdatasync(self._index.descriptor)  # or a power cut could leave the holes and not what says why
        _punch(self._output, self._released, record.offset)
        _punch(self._index.descriptor, self._first_kept * RECORD_SIZE, number * RECORD_SIZE, keep=RECORD_SIZE)
        self._first_kept, self._released = number, record.offset

    def _write_header(self, first_kept: int) -> None:
        header = Record(Kind.HEADER, None, FORMAT_VERSION, self._codec.tie, first_kept, self._created_ns)
        _write_at(self._index.descriptor, self._codec.pack(0, header), 0)

    def _write_record(self, data: bytes) -> None:
        _write_at(self._index.descriptor, data, self._records * RECORD_SIZE)
        self._records += 1

    def _now(self) -> int:
        """Read the clock, never backwards within one log."""
        self._time_ns = max(self._time_ns, time.time_ns())
        return self._time_ns


def _punch(descriptor: int, start: int, end: int, keep: int = 0) -> None:
    """Release a range of a file, with what an earlier call left of a block before it, but for `keep` bytes."""
    start = max(keep, start - start % _HOLE_ALIGNMENT)
    if end > start:
        linux.punch_hole(descriptor, start, end - start)


def _write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    written = os.pwrite(descriptor, data, offset)
    while written < len(data):
        data = data[written:]
        offset += written
        written = os.pwrite(descriptor, data, offset)
