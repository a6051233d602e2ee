"""Reading a log's index off the disk: records by number, and finding one.

Whoever reads holds a descriptor of the index file. The first record is the header: its `offset` is the version of the
format, its `stream_offset` the number of the first record that is still kept, zero as long as nothing was released. The
record of that number always exists. What lies before it may be blank at any moment (`workerd.engine.spool`).
"""

import bisect
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from workerd.engine.errors import FormatTooNew, SpoolCorrupt
from workerd.engine.job import FORMAT_VERSION
from workerd.engine.record import RECORD_SIZE, Kind, Record, unpack, unpack_many

_LOOKS = 100
_BATCH_BYTES = 4096 * RECORD_SIZE


def count_records(index: int) -> int:
    """Tell how many records the index has, the header and one that does not check included."""
    return os.fstat(index).st_size // RECORD_SIZE


def read_record(index: int, number: int) -> Record | None:
    """Read one record; None when it is not there or does not check."""
    data = os.pread(index, RECORD_SIZE, number * RECORD_SIZE)
    return unpack(data) if len(data) == RECORD_SIZE else None


def first_kept(index: int, path: Path) -> int:
    """Read off the header which record is the first that was not released.

    Args:
        path: of the index, for errors.

    Raises:
        FormatTooNew: the index is of a newer format.
        SpoolCorrupt: it has no header.
    """
    for _ in range(_LOOKS):  # the header is replaced in place, so that one look may fall into that
        header = read_record(index, 0)
        if header is not None and header.kind is Kind.HEADER:
            if header.offset > FORMAT_VERSION:
                raise FormatTooNew(path, header.offset)
            return max(1, header.stream_offset)
    raise SpoolCorrupt(path, "it has no header")


def kept_from(index: int, path: Path) -> tuple[int, int]:
    """Tell what is still kept of a log.

    Returns:
        The number of the first record that was not released, and the offset of the first byte of it in the combined
        output.
    """
    for _ in range(_LOOKS):  # more may be released between the two looks
        number = first_kept(index, path)
        if number == 1:
            return 1, 0
        record = read_record(index, number)
        if record is not None:
            return number, record.offset
    raise SpoolCorrupt(path, "the first record that is kept does not check")


def find_record(index: int, numbers: range, wanted: Callable[[int, Record], bool]) -> int:
    """Find the first of some records that is wanted; those after it are, too.

    Args:
        numbers: which records to look among.
        wanted: tells of a number and its record. A record that does not check is one that is being written, the last.

    Returns:
        Its number; the end of the range when there is none.
    """

    def is_wanted(number: int) -> bool:
        record = read_record(index, number)
        return record is None or wanted(number, record)

    return numbers.start + bisect.bisect_left(numbers, True, key=is_wanted)


def last_output(index: int) -> Record | None:
    """Find the last output record; None when nothing has been written yet."""
    for number in range(count_records(index) - 1, 0, -1):
        record = read_record(index, number)
        if record is not None and record.kind is Kind.OUTPUT:
            return record
    return None


def read_records(index: int, number: int) -> Iterator[Record]:
    """Read records from one on, up to the first that does not check."""
    position = number * RECORD_SIZE
    while data := os.pread(index, _BATCH_BYTES, position):
        count = 0
        for record in unpack_many(data):
            count += 1
            yield record
        if count * RECORD_SIZE < len(data):
            return
        position += len(data)
