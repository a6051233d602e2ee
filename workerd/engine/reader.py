"""The reading side of a log: events from any offset, off the disk. A reader holds an offset and nothing else."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from workerd.engine.errors import InvalidArgument, SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.index import count_records, find_record, first_kept, kept_from, last_output
from workerd.engine.job import Stream
from workerd.engine.record import RECORD_SIZE, Kind, Record, unpack_many

CHUNK_BYTES = 256 * 1024
_BATCH_RECORDS = 1024


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of one stream.

    Attributes:
        offset: of the first byte in the combined output.
        stream_offset: of the first byte within its own stream.
        time_ns: when the first byte arrived, nanoseconds since the epoch.
    """

    offset: int
    stream: Stream
    time_ns: int
    stream_offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of the combined output that cannot be read any more: `start` is its first byte, `end` the first after."""

    start: int
    end: int


class LogReader:
    """Reads one log, whoever writes it meanwhile.

    Attributes:
        complete: whether the log's end has been read: there is nothing more, ever.
        exhausted: whether the last read went up to what had been written when it began.

    Raises:
        FileNotFoundError: there is no log.
        SpoolCorrupt: it is damaged, or of a newer format.
    """

    def __init__(self, folder: JobFolder, streams: frozenset[Stream] = frozenset(Stream)) -> None:
        self.complete = False
        self.exhausted = False
        self._streams = streams
        self._path = folder.index
        self._offset = 0
        self._next = 1  # the number of the record to read next
        with contextlib.ExitStack() as undo:
            self._index = os.open(folder.index, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._index)
            self._output = os.open(folder.output, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._output)
            first_kept(self._index, self._path)
            self._close = undo.pop_all().close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def position(self) -> int:
        """The offset up to which the log has been read or passed over, in bytes."""
        return self._offset

    def size(self) -> int:
        """Tell the size of the combined output as it stands, in bytes."""
        last = last_output(self._index)
        return 0 if last is None else last.end_offset

    def seek(self, offset: int) -> None:
        """Make the byte at an offset the next one to read.

        Raises:
            InvalidArgument: the log has not got so far yet.
        """
        if offset > self.size():
            raise InvalidArgument("offset_bytes", f"{offset} is beyond the log's {self.size()} bytes")
        first, kept = kept_from(self._index, self._path)
        numbers = range(first, count_records(self._index))
        self._next = 1 if offset < kept else find_record(self._index, numbers, lambda _, r: _ends_after(r, offset))
        self._offset = offset

    def read(self, most_bytes: int = CHUNK_BYTES) -> list[Output | Gap]:
        """Read what comes next, in the order in which it was written.

        Neighbouring bytes of one stream come as one event. What has been released comes as a gap.

        Args:
            most_bytes: of output; one or more.

        Returns:
            At most so much output, or CHUNK_BYTES if that is less, and a bounded number of events; none when there is
            nothing new, when all that is new is of other streams, or when `complete`.

        Raises:
            SpoolCorrupt: the log is damaged.
        """
        spans: list[_Span] = []
        most_bytes = min(most_bytes, CHUNK_BYTES)
        position, count, ends = self._offset, 0, False
        self.exhausted = True
        for record in self._records():
            if record.kind is Kind.END:
                ends = True
                break
            if record.kind is not Kind.OUTPUT or record.stream is None:
                raise SpoolCorrupt(self._path, f"a {record.kind.name} record after the first")
            if record.stream in self._streams and record.end_offset > position:
                start = max(position, record.offset)
                end = min(record.end_offset, (spans[0].start if spans else start) + most_bytes)
                if end > start:
                    _append(spans, record, start, end)
                    position = end
                if end < record.end_offset:
                    self.exhausted = False
                    break
            position = max(position, record.end_offset)
            count += 1
        if count == _BATCH_RECORDS:
            self.exhausted = False
        # Up to the last span and not to `position`: what was passed over behind it may be of any size.
        data = os.pread(self._output, spans[-1].end - spans[0].start, spans[0].start) if spans else b""
        if self._is_released():  # then the records may be blank, or the data
            self.exhausted = False
            return self._step_over_released()
        self._offset = position
        self._next += count
        self.complete = ends
        return list(_cut(data, spans))

    def _records(self) -> Iterator[Record]:
        data = os.pread(self._index, _BATCH_RECORDS * RECORD_SIZE, self._next * RECORD_SIZE)
        count = 0
        for record in unpack_many(data):
            count += 1
            yield record
        # The last record may be one that is being written: the next event of the file tells. An earlier one is damaged.
        if len(data) >= (count + 2) * RECORD_SIZE:
            if count > 0:
                self.exhausted = False  # the next read meets it first
            elif not self._is_released():
                raise SpoolCorrupt(self._path, f"record {self._next} does not check")

    def _is_released(self) -> bool:
        return first_kept(self._index, self._path) > self._next

    def _step_over_released(self) -> list[Output | Gap]:
        number, kept = kept_from(self._index, self._path)
        start = self._offset
        self._next = number
        self._offset = max(start, kept)
        return [Gap(start, kept)] if start < kept else []


@dataclass(slots=True)
class _Span:
    """Neighbouring bytes of one stream, from `start` to before `end` in the combined output."""

    stream: Stream
    start: int
    end: int
    stream_offset: int
    time_ns: int


def _append(spans: list[_Span], record: Record, start: int, end: int) -> None:
    """Add a record's bytes from `start` to before `end`, to the last span if they go on with it."""
    if record.stream is None:
        raise AssertionError("only records of output have bytes")
    if spans and spans[-1].stream is record.stream and spans[-1].end == start:
        spans[-1].end = end
    else:
        spans.append(_Span(record.stream, start, end, record.stream_offset + start - record.offset, record.time_ns))


def _cut(data: bytes, spans: list[_Span]) -> Iterator[Output | Gap]:
    """Cut what was read from the first span on into events; what is missing at its end is a gap."""
    for span in spans:
        begin = spans[0].start
        piece = data[span.start - begin : span.end - begin]
        if piece:
            yield Output(span.start, span.stream, span.time_ns, span.stream_offset, piece)
        if len(piece) < span.end - span.start:
            yield Gap(span.start + len(piece), span.end)


def _ends_after(record: Record, offset: int) -> bool:
    return record.kind is not Kind.OUTPUT or record.end_offset > offset


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a log there is, in bytes: of each stream, written so far; and from which offset on it is kept."""

    stdout: int = 0
    stderr: int = 0
    kept_from: int = 0


def measure(folder: JobFolder) -> Extent:
    """Tell how much there is of a log.

    Raises:
        SpoolCorrupt: it is damaged, or of a newer format.
    """
    try:
        index = os.open(folder.index, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the supervisor has not got so far
        return Extent()
    try:
        last = last_output(index)
        if last is None:
            return Extent()
        return Extent(
            last.stream_size(Stream.STDOUT), last.stream_size(Stream.STDERR), kept_from(index, folder.index)[1]
        )
    finally:
        os.close(index)
