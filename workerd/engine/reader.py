"""The reading side of a log: events from any offset, off the disk. A reader holds an offset and nothing else."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from workerd.engine.errors import InvalidArgument, SpoolCorrupt
from workerd.engine.files import open_regular
from workerd.engine.folder import JobFolder
from workerd.engine.job import Stream
from workerd.engine.record import RECORD_SIZE, Kind, Record, checksum

CHUNK_BYTES = 256 * 1024
_BATCH_RECORDS = 1024
_LOOKS = 3  # what does not check may have been read while it was written or released


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
    """Reads one log while it may be written, and checks what it reads.

    Every record's bytes are checked once by each reader, the first time that it needs some of them.

    Attributes:
        complete: whether the log's end has been read: there is nothing more, ever.
        exhausted: whether the last read went up to what had been written when it began.

    Raises:
        FileNotFoundError: the job is not there.
        SpoolCorrupt: the log is damaged, or of a newer format.
    """

    def __init__(self, folder: JobFolder, streams: frozenset[Stream] = frozenset(Stream)) -> None:
        self.complete = False
        self.exhausted = False
        self._streams = streams
        self._path = folder.output
        self._offset = 0
        self._next = 1  # the number of the record to read next
        self._checked = 0  # the number of the last record whose bytes were checked
        with contextlib.ExitStack() as undo:
            with folder.requiring_files():
                self._index = undo.enter_context(folder.open_index())
                self._output = open_regular(folder.output)
            undo.callback(os.close, self._output)
            self._index.first_kept()
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
        """Return the size of the combined output as it stands, in bytes."""
        end, last = self._index.end(), self._index.last_output()
        return end.offset if end is not None else 0 if last is None else last.end_offset

    def seek(self, offset: int) -> None:
        """Make the byte at an offset the next one to read.

        Raises:
            InvalidArgument: the log has not got so far yet.
        """
        if offset > self.size():
            raise InvalidArgument("offset_bytes", f"{offset} is beyond the log's {self.size()} bytes")
        first, kept = self._index.kept_from()
        numbers = range(first, self._index.count())
        self._next = 1 if offset < kept else self._index.find(numbers, lambda _, r: _ends_after(r, offset))
        self._offset, self._checked = offset, 0

    def read(self, most_bytes: int = CHUNK_BYTES) -> list[Output | Gap]:
        """Read what comes next, in the order in which it was written.

        Neighbouring bytes of one stream come as one event. What has been released comes as a gap.

        Args:
            most_bytes: of output; one or more.

        Returns:
            At most so much output, or CHUNK_BYTES if that is less, and a bounded number of events; none when there is
            nothing new, when all that is new is of other streams, or when `complete`.

        Raises:
            SpoolCorrupt: the log is damaged. What comes before the damage has been returned by earlier calls.
        """
        looks = 0
        while True:
            batch = self._collect(min(most_bytes, CHUNK_BYTES))
            data = self._read_bytes(batch)
            if self._is_released():  # then the records may be blank, or the data
                self.exhausted = False
                return self._step_over_released()
            if batch.count or batch.spans or batch.problem is None:
                self._offset, self.exhausted, self.complete = batch.position, batch.exhausted, batch.ends
                self._next += batch.count
                self._checked = max(self._checked, batch.checked)
                return list(_cut(data, batch.spans))
            looks += 1
            if looks == _LOOKS:
                raise batch.problem

    def _collect(self, most_bytes: int) -> "_Batch":
        """Choose what to read next, off the index alone."""
        batch = _Batch(self._offset)
        for record in self._records(batch):
            if record.kind is Kind.END:
                batch.ends = True
                break
            if record.kind is not Kind.OUTPUT or record.stream is None:
                raise SpoolCorrupt(self._path, f"a {record.kind.name} record after the first")
            if record.stream in self._streams and record.end_offset > batch.position:
                start = max(batch.position, record.offset)
                first = batch.spans[0].start if batch.spans else start
                end = min(record.end_offset, first + most_bytes)
                if batch.spans and end < record.end_offset:  # next time, whole: it is read once, and checked
                    batch.exhausted = False
                    break
                if end > start:
                    batch.take(self._next + batch.count, record, start, end)
                    batch.position = end
                if end < record.end_offset:
                    batch.exhausted = False
                    break
            batch.position = max(batch.position, record.end_offset)
            batch.count += 1
        if batch.count == _BATCH_RECORDS:
            batch.exhausted = False
        return batch

    def _read_bytes(self, batch: "_Batch") -> bytes:
        """Read the bytes of a batch, and check those of records that were not checked before.

        A batch with bytes that do not check is cut before them.
        """
        if not batch.spans:
            return b""
        unchecked = [(number, record) for number, record in batch.records if number > self._checked]
        begin = min([batch.spans[0].start, *(record.offset for _, record in unchecked[:1])])
        end = max([batch.spans[-1].end, *(record.end_offset for _, record in unchecked[-1:])])
        data = os.pread(self._output, end - begin, begin)
        view = memoryview(data)
        for number, record in unchecked:
            piece = view[record.offset - begin : record.end_offset - begin]
            if len(piece) < record.length or (record.data is not None and record.data != checksum(piece)):
                batch.cut(number, record, self._next, self._path)
                break
            batch.checked = number
        else:
            if len(data) < end - begin:
                batch.cut(*batch.records[-1], self._next, self._path)
        return data[batch.spans[0].start - begin :] if batch.spans else b""

    def _records(self, batch: "_Batch") -> Iterator[Record]:
        """Read the records from the next on, up to the first that does not check."""
        data = self._index.read_batch(self._next, _BATCH_RECORDS)
        count = 0
        for record in self._index.codec.unpack_many(data, self._next):
            count += 1
            yield record
        # The last record may be one that is being written: the next event of the file tells. An earlier one is damaged.
        if len(data) >= (count + 2) * RECORD_SIZE:
            batch.exhausted = False
            batch.problem = SpoolCorrupt(self._index.path, f"record {self._next + count} does not check")

    def _is_released(self) -> bool:
        return self._index.first_kept() > self._next

    def _step_over_released(self) -> list[Output | Gap]:
        number, kept = self._index.kept_from()
        start = self._offset
        self._next = number
        self._offset = max(start, kept)
        return [Gap(start, kept)] if start < kept else []


@dataclass(slots=True)
class _Batch:
    """What one read is about to return.

    Attributes:
        position: the offset that the reader gets to.
        count: how many records it gets past.
        records: those with bytes that are wanted, with their numbers.
        checked: the number of the last record whose bytes check.
        problem: what is wrong with what comes next, if anything is.
    """

    position: int
    count: int = 0
    ends: bool = False
    exhausted: bool = True
    checked: int = 0
    problem: SpoolCorrupt | None = None
    spans: list["_Span"] = field(default_factory=list)
    records: list[tuple[int, Record]] = field(default_factory=list)

    def take(self, number: int, record: Record, start: int, end: int) -> None:
        """Add the bytes of a record from `start` to before `end`."""
        self.records.append((number, record))
        _append(self.spans, record, start, end)

    def cut(self, number: int, record: Record, first: int, output: Path) -> None:
        """Leave out a record whose bytes do not check, with all that follows. `first` is the number read first."""
        self.problem = SpoolCorrupt(
            output,
            f"its bytes from {record.offset} to before {record.end_offset} are not those that the job printed",
            f"what follows can be read from offset {record.end_offset} on",
        )
        self.ends = self.exhausted = False
        self.count = number - first
        self.position = min(self.position, record.offset)
        self.spans = [span for span in self.spans if span.start < record.offset]
        if self.spans:
            self.spans[-1].end = min(self.spans[-1].end, record.offset)


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
    """Cut what was read from the first span on into events."""
    for span in spans:
        begin = spans[0].start
        yield Output(
            span.start, span.stream, span.time_ns, span.stream_offset, data[span.start - begin : span.end - begin]
        )


def _ends_after(record: Record, offset: int) -> bool:
    return record.kind is not Kind.OUTPUT or record.end_offset > offset


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a log there is, in bytes: of each stream, written so far; and from which offset on it is kept.

    Attributes:
        ended: whether the index says that nothing will follow.
    """

    stdout: int = 0
    stderr: int = 0
    kept_from: int = 0
    ended: bool = False


def measure(folder: JobFolder) -> Extent:
    """Return how much there is of a log.

    Raises:
        FileNotFoundError: there is no index.
        SpoolCorrupt: it is damaged, or of a newer format.
    """
    with folder.open_index() as index:
        _, kept = index.kept_from()
        end, last = index.end(), index.last_output()  # in this order: after the end nothing is appended
        size = kept if last is None else last.end_offset
        if end is not None and end.offset != size:
            raise SpoolCorrupt(folder.index, f"the log ends at byte {end.offset}, and nothing is known beyond {size}")
        if last is None:
            return Extent(kept_from=kept, ended=end is not None)
        return Extent(last.stream_size(Stream.STDOUT), last.stream_size(Stream.STDERR), kept, end is not None)
