"""The reading side of a log: events from any offset, off the disk. A reader holds an offset and nothing else."""

import contextlib
import os
from collections.abc import Generator, Iterator
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

    Raises:
        FileNotFoundError: there is no log.
        SpoolCorrupt: it is damaged, or of a newer format.
    """

    def __init__(self, folder: JobFolder, streams: frozenset[Stream] = frozenset(Stream)) -> None:
        self.complete = False
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

    def read(self) -> Iterator[Output | Gap]:
        """Read what has been written since, in the order in which it was.

        Neighbouring bytes of one stream come as one event of at most CHUNK_BYTES. It stops after a bounded number of
        records or when there is nothing more as yet; an event that was not taken is read again next time. What has been
        released comes as a gap.

        Returns:
            Nothing when there is nothing new, or when `complete`.
        """
        if self._is_released():
            yield from self._step_over_released()
        run: list[Record] = []
        for record in self._records():
            if record.kind is Kind.END:
                if (yield from self._emit(run)):
                    self.complete = True
                return
            if record.kind is not Kind.OUTPUT or record.stream is None:
                raise SpoolCorrupt(self._path, f"a {record.kind.name} record after the first")
            if run and (record.stream is not run[0].stream or record.end_offset - run[0].offset > CHUNK_BYTES):
                if not (yield from self._emit(run)):
                    return
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
        if count == 0 and len(data) >= 2 * RECORD_SIZE and not self._is_released():
            raise SpoolCorrupt(self._path, f"record {self._next} does not check")

    def _emit(self, run: list[Record]) -> Generator[Output | Gap, None, bool]:
        """Turn neighbouring records of one stream into events, and step over them as these are taken.

        Returns:
            Whether the record after them is the next; not if they were released meanwhile, or some of them.
        """
        if not run:
            return True
        first, last, stream = run[0], run[-1], run[0].stream
        if stream is not None and stream in self._streams:
            while self._offset < last.end_offset:
                start = max(self._offset, first.offset)
                length = min(last.end_offset - start, CHUNK_BYTES)
                data = os.pread(self._output, length, start)
                if self._is_released():  # then the data may be blank
                    yield from self._step_over_released()
                    return False
                if not data:
                    yield Gap(start, last.end_offset)
                    self._offset = last.end_offset
                    break
                time_ns = next(record.time_ns for record in run if start < record.end_offset)
                yield Output(start, stream, time_ns, first.stream_offset + start - first.offset, data)
                self._offset = start + len(data)
        self._offset = max(self._offset, last.end_offset)
        self._next += len(run)
        return True

    def _is_released(self) -> bool:
        return first_kept(self._index, self._path) > self._next

    def _step_over_released(self) -> Iterator[Gap]:
        number, kept = kept_from(self._index, self._path)
        if self._offset < kept:
            yield Gap(self._offset, kept)
            self._offset = kept
        self._next = number


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
