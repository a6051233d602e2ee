"""The records of a log's index: fixed size, each with its own checksum. Pure: bytes in, values out.

A record says what lies where in the log's `output` file. Its bytes are written there before the record is, so that a
record which is there and checks is true. All numbers are little-endian:

    kind u8 | stream u8 | reserved u16 | length u32 | offset u64 | stream_offset u64 | time u64 | checksum u64

The checksum is XXH3-64 of all bytes before it. `stream_offset` is the offset within the record's own stream, so that
the last output record alone tells the size of both streams.
"""

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from workerd.engine.job import Stream

_BODY = struct.Struct("<BBxxIQQQ")
_CHECKSUM = struct.Struct("<Q")
_WHOLE = struct.Struct("<BBxxIQQQQ")
RECORD_SIZE = _WHOLE.size
MAX_LENGTH = 2**32 - 1


class Kind(enum.IntEnum):
    """What a record stands for."""

    HEADER = 1
    """The first record of an index; its offset is the version of the format."""
    OUTPUT = 2
    """Bytes of one stream."""
    END = 3
    """The log is complete; its offset is the size of the log."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of an index.

    Attributes:
        stream: the stream of the bytes; None for records that are not about output.
        offset: of the first byte in the combined output, in bytes.
        length: in bytes.
        stream_offset: of the first byte within its own stream, in bytes.
        time_ns: when the first byte arrived, nanoseconds since the epoch.
    """

    kind: Kind
    stream: Stream | None
    offset: int
    length: int
    stream_offset: int
    time_ns: int

    @property
    def end_offset(self) -> int:
        """The offset of the first byte after this record's."""
        return self.offset + self.length

    def stream_size(self, stream: Stream) -> int:
        """Tell the size of one stream up to and with this output record, in bytes."""
        own = self.stream_offset + self.length
        return own if stream is self.stream else self.end_offset - own


def pack(record: Record) -> bytes:
    """Encode a record into RECORD_SIZE bytes."""
    return pack_fields(
        record.kind, record.stream or 0, record.offset, record.length, record.stream_offset, record.time_ns
    )


def pack_fields(kind: int, stream: int, offset: int, length: int, stream_offset: int, time_ns: int) -> bytes:
    """Encode a record without building one first, for the writer of output."""
    body = _BODY.pack(kind, stream, length, offset, stream_offset, time_ns)
    return body + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(body))


def unpack(data: bytes) -> Record | None:
    """Decode one record.

    Args:
        data: RECORD_SIZE bytes.

    Returns:
        None when the checksum does not hold or the values are none that `pack` was ever given.
    """
    return next(unpack_many(data), None)


def unpack_many(data: bytes) -> Iterator[Record]:
    """Decode records up to the first that does not check; what is left over after the last whole one is ignored."""
    whole = len(data) - len(data) % RECORD_SIZE
    view = memoryview(data)[:whole]
    for position, fields in zip(range(0, whole, RECORD_SIZE), _WHOLE.iter_unpack(view), strict=True):
        kind, stream, length, offset, stream_offset, time_ns, checksum = fields
        if xxhash.xxh3_64_intdigest(view[position : position + _BODY.size]) != checksum:
            return
        try:
            yield Record(Kind(kind), Stream(stream) if stream else None, offset, length, stream_offset, time_ns)
        except ValueError:
            return
