"""The reading side of a log: events from any offset, off the disk. A reader holds an offset and nothing else."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from workerd.engine.errors import InvalidArgument, SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import FORMAT_VERSION, Stream
from workerd.engine.record import RECORD_SIZE, Kind, Record, unpack, unpack_many

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
    """

    def __init__(self, folder: JobFolder, streams: frozenset[Stream] = frozenset(Stream)) -> None:
        self.complete = False
        self._streams = streams
        self._path = folder.index
        self._offset = 0
        self._next = 0  # the number of the record to read next
        with contextlib.ExitStack() as undo:
            self._index = os.open(folder.index, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._index)
            self._output = os.open(folder.output, os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, self._output)
            self._check_header()
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
        low, high = 1, os.fstat(self._index).st_size // RECORD_SIZE
        while low < high:  # the first record that ends after the offset
            middle = (low + high) // 2
            record = _read_record(self._index, middle)
            if record is not None and record.kind is Kind.OUTPUT and record.end_offset <= offset:
                low = middle + 1
            else:
                high = middle
        self._next = low
        self._offset = offset

    def read(self) -> Iterator[Output | Gap]:
        """Read what has been written since, in the order in which it was.

        Neighbouring bytes of one stream come as one event of at most CHUNK_BYTES. It stops after a bounded number of
        records or when there is nothing more as yet; an event that was not taken is read again next time.

        Returns:
            Nothing when there is nothing new, or when `complete`.
        """
        run: list[Record] = []
        for record in self._records():
            if record.kind is Kind.END:
                yield from self._emit(run)
                self.complete = True
                return
            if record.kind is not Kind.OUTPUT or record.stream is None:
                raise SpoolCorrupt(self._path, f"a {record.kind.name} record after the first")
            if run and (record.stream is not run[0].stream or record.end_offset - run[0].offset > CHUNK_BYTES):
                yield from self._emit(run)
                run = []
            run.append(record)
        yield from self._emit(run)

    def _records(self) -> Iterator[Record]:
        data = os.pread(self._index, _BATCH_RECORDS * RECORD_SIZE, self._next * RECORD_SIZE)
        count = 0
        for record in unpack_many(data):
            count += 1
            yield record
        # The last record may be one that is being written: the next event of the file tells. An earlier one is damaged.
        if count == 0 and len(data) >= 2 * RECORD_SIZE:
            raise SpoolCorrupt(self._path, f"record {self._next} does not check")

    def _emit(self, run: list[Record]) -> Iterator[Output | Gap]:
        """Turn neighbouring records of one stream into events, and step over them as these are taken."""
        if not run:
            return
        first, last, stream = run[0], run[-1], run[0].stream
        if stream is not None and stream in self._streams:
            while self._offset < last.end_offset:
                start = max(self._offset, first.offset)
                length = min(last.end_offset - start, CHUNK_BYTES)
                data = os.pread(self._output, length, start)
                if not data:
                    yield Gap(start, last.end_offset)
                    self._offset = last.end_offset
                    break
                time_ns = next(record.time_ns for record in run if start < record.end_offset)
                yield Output(start, stream, time_ns, first.stream_offset + start - first.offset, data)
                self._offset = start + len(data)
        self._offset = last.end_offset
        self._next += len(run)

    def _check_header(self) -> None:
        header = _read_record(self._index, 0)
        if header is not None and header.kind is Kind.HEADER and header.offset > FORMAT_VERSION:
            raise SpoolCorrupt(self._path, f"its format {header.offset} is newer than {FORMAT_VERSION}: update workerd")
        if header is None or header.kind is not Kind.HEADER:
            raise SpoolCorrupt(self._path, "it has no header")
        self._next = 1


def last_output(index: int) -> Record | None:
    """Find the last output record of an index.

    Args:
        index: a descriptor of the index file.

    Returns:
        None when nothing has been written yet.
    """
    for number in range(os.fstat(index).st_size // RECORD_SIZE - 1, 0, -1):
        record = _read_record(index, number)
        if record is not None and record.kind is Kind.OUTPUT:
            return record
    return None


def stream_sizes(folder: JobFolder) -> dict[Stream, int]:
    """Tell how many bytes of each stream have been captured so far."""
    try:
        index = os.open(folder.index, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the supervisor has not got so far
        return dict.fromkeys(Stream, 0)
    try:
        last = last_output(index)
    finally:
        os.close(index)
    return {stream: 0 if last is None else last.stream_size(stream) for stream in Stream}


def _read_record(index: int, number: int) -> Record | None:
    data = os.pread(index, RECORD_SIZE, number * RECORD_SIZE)
    return unpack(data) if len(data) == RECORD_SIZE else None
