"""Reading a log's index off the disk: records by number, and finding one.

The first record is the header: its `offset` is the version of the format, its `length` a number that ties the index to
its job, its `stream_offset` the number of the first record that is still kept, zero as long as nothing was released.
The record of that number always exists. Those before it may be blank at any moment (`workerd.engine.spool`).
"""

import bisect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from workerd.engine.errors import FormatTooNew, SpoolCorrupt
from workerd.engine.files import open_regular
from workerd.engine.job import FORMAT_VERSION
from workerd.engine.record import RECORD_SIZE, Codec, Kind, Record

_LOOKS = 100
_BATCH_BYTES = 4096 * RECORD_SIZE


class IndexFile:
    """An open index. A context manager.

    Args:
        path: of the file.
        codec: of the job's format.
        flags: for open(2).

    Attributes:
        descriptor: of the open file.

    Raises:
        FileNotFoundError: there is no such file.
        SpoolCorrupt: what is there is no regular file.
    """

    def __init__(self, path: Path, codec: Codec, flags: int = os.O_RDONLY) -> None:
        self.path = path
        self.codec = codec
        self.descriptor = open_regular(path, flags)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)

    def count(self) -> int:
        """Return how many records there are, the header and one that does not check included."""
        return os.fstat(self.descriptor).st_size // RECORD_SIZE

    def read(self, number: int) -> Record | None:
        """Return one record; None when it is not there or does not check."""
        data = os.pread(self.descriptor, RECORD_SIZE, number * RECORD_SIZE)
        return next(self.codec.unpack_many(data, number), None)

    def read_batch(self, number: int, most: int) -> bytes:
        """Return the bytes of at most so many records from one on."""
        return os.pread(self.descriptor, most * RECORD_SIZE, number * RECORD_SIZE)

    def records(self, number: int) -> Iterator[Record]:
        """Return records from one on, up to the first that does not check."""
        while data := os.pread(self.descriptor, _BATCH_BYTES, number * RECORD_SIZE):
            count = 0
            for record in self.codec.unpack_many(data, number):
                count += 1
                yield record
            if count * RECORD_SIZE < len(data):
                return
            number += count

    def first_kept(self) -> int:
        """Return the number of the first record that was not released, as the header has it.

        Raises:
            FormatTooNew: the index is of a newer format.
            SpoolCorrupt: it has no header of this job.
        """
        for _ in range(_LOOKS):  # the header is replaced in place, so that one look may fall into that
            header = self.read(0)
            if header is not None and header.kind is Kind.HEADER:
                if header.offset > FORMAT_VERSION:
                    raise FormatTooNew(self.path, header.offset)
                if header.offset not in self.codec.versions or header.length != self.codec.tie:
                    raise SpoolCorrupt(self.path, "its header is that of another job")
                return max(1, header.stream_offset)
        raise SpoolCorrupt(self.path, "it has no header")

    def kept_from(self) -> tuple[int, int]:
        """Return what is still kept of the log.

        Returns:
            The number of the first record that was not released, and the offset of its first byte in the combined
            output.
        """
        for _ in range(_LOOKS):  # more may be released between the two looks
            number = self.first_kept()
            if number == 1:
                return 1, 0
            record = self.read(number)
            if record is not None:
                return number, record.offset
        raise SpoolCorrupt(self.path, "the first record that is kept does not check")

    def find(self, numbers: range, wanted: Callable[[int, Record], bool]) -> int:
        """Return the number of the first of some records that is wanted; the end of the range when there is none.

        Args:
            numbers: which records to look among.
            wanted: whether a record, given with its number, is wanted; all after the first wanted one must be. A record
                that does not check counts as wanted: it is the last, and is being written.
        """

        def is_wanted(number: int) -> bool:
            record = self.read(number)
            return record is None or wanted(number, record)

        return numbers.start + bisect.bisect_left(numbers, True, key=is_wanted)

    def last_output(self) -> Record | None:
        """Return the last output record that checks; None when there is none."""
        count = self.count()
        # The last record may be the end, or one that is being written. Where more do not check, a power cut took them.
        for last in range(count - 1, max(count - 4, 0), -1):
            if (record := self._read_output(last)) is not None:
                return record
        return self._read_output(self.find(range(self._first_or_one(), count), lambda *_: False) - 1)

    def _read_output(self, number: int) -> Record | None:
        record = self.read(max(0, number))
        return record if record is not None and record.kind is Kind.OUTPUT else None

    def _first_or_one(self) -> int:
        try:
            return self.first_kept()
        except SpoolCorrupt:
            return 1

    def end(self) -> Record | None:
        """Return the end record; None when the last record is another."""
        record = self.read(max(0, self.count() - 1))
        return record if record is not None and record.kind is Kind.END else None
