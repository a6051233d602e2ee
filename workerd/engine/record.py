"""The records of a log's index: fixed size, each with its own checksum. Pure: bytes in, values out.

A record says which bytes of the log's `output` file belong to which stream. The bytes are written before their record,
and the record holds a checksum of them. All numbers are little-endian:

    kind u8 | stream u8 | reserved u16 | length u32 | offset u64 | stream_offset u64 | time u64 | data u32 | check u32

`data` is the low half of the XXH3-64 of the bytes that the record stands for. `check` is the low half of the XXH3-64 of
the fields before it, seeded with the job's id and the record's number, so that a record of another job or from another
place does not check. `stream_offset` is the offset within the record's own stream, so that the last output record alone
gives the size of both streams.

Formats 1 and 2 have one checksum in the place of `data` and `check`: the whole XXH3-64 of the fields, without a seed.
The header is encoded like that in every format, so that every version can read which format it has before it.
"""

import enum
import struct
from collections.abc import Iterator
from typing import Protocol

import msgspec
import xxhash

from workerd.engine.job import FORMAT_VERSION, Stream

_BODY = struct.Struct("<BBxxIQQQI")
_CHECK = struct.Struct("<I")
_WHOLE = struct.Struct("<BBxxIQQQII")
_OLD_BODY = struct.Struct("<BBxxIQQQ")
_OLD_CHECK = struct.Struct("<Q")
_OLD_WHOLE = struct.Struct("<BBxxIQQQQ")
RECORD_SIZE = _WHOLE.size
MAX_LENGTH = 2**32 - 1
LOW_HALF = 2**32 - 1
_SEEDS = 2**64 - 1
_digest = xxhash.xxh3_64_intdigest


class Kind(enum.IntEnum):
    """What a record stands for."""

    HEADER = 1
    """The first record of an index; its offset is the version of the format."""
    OUTPUT = 2
    """Bytes of one stream."""
    END = 3
    """The log is complete; its offset is the size of the log."""


_KINDS = {int(kind): kind for kind in Kind}
_STREAMS: dict[int, Stream | None] = {0: None} | {int(stream): stream for stream in Stream}


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record of an index.

    Attributes:
        stream: the stream of the bytes; None for records that are not about output.
        offset: of the first byte in the combined output, in bytes.
        length: in bytes.
        stream_offset: of the first byte within its own stream, in bytes.
        time_ns: when the first byte arrived, nanoseconds since the epoch; it never goes back within a log.
        data: checksum of the bytes (`checksum`); None where the format has none.
    """

    kind: Kind
    stream: Stream | None
    offset: int
    length: int
    stream_offset: int
    time_ns: int
    data: int | None = None

    @property
    def end_offset(self) -> int:
        """The offset of the first byte after this record's."""
        return self.offset + self.length

    def stream_size(self, stream: Stream) -> int:
        """Return the size of one stream up to the end of this output record, in bytes."""
        own = self.stream_offset + self.length
        return own if stream is self.stream else self.end_offset - own


def checksum(data: bytes | memoryview, seed: int = 0) -> int:
    """Return the low half of the XXH3-64 of some bytes."""
    return _digest(data, seed) & LOW_HALF


def job_seed(job_id: str) -> int:
    """Return the number that ties checksums to one job."""
    return _digest(job_id.encode())


class Codec(Protocol):
    """Encodes and decodes the records of one format."""

    @property
    def versions(self) -> range:
        """Which versions of the format it reads."""

    @property
    def tie(self) -> int:
        """What the header's `length` is: ties an index to its job; zero in formats that did not."""

    def pack(self, number: int, record: Record) -> bytes:
        """Encode the record with this number into RECORD_SIZE bytes."""

    def unpack_many(self, data: bytes, number: int) -> Iterator[Record]:
        """Decode records up to the first that does not check. `number` is that of the first."""


class CheckedCodec:
    """Format 3, for the index of one job."""

    versions = range(3, FORMAT_VERSION + 1)

    def __init__(self, job_id: str) -> None:
        self._seed = job_seed(job_id)
        self.tie = self._seed & LOW_HALF

    def pack(self, number: int, record: Record) -> bytes:
        """Encode the record with this number into RECORD_SIZE bytes."""
        if record.kind is Kind.HEADER:
            return _pack_old(record)
        return self.pack_fields(
            number,
            record.kind,
            record.stream or 0,
            record.offset,
            record.length,
            record.stream_offset,
            record.time_ns,
            record.data or 0,
        )

    def pack_fields(
        self, number: int, kind: int, stream: int, offset: int, length: int, stream_offset: int, time_ns: int, data: int
    ) -> bytes:
        """Encode a record without building one first, for the writer of output."""
        body = _BODY.pack(kind, stream, length, offset, stream_offset, time_ns, data)
        return body + _CHECK.pack(_digest(body, self._seed + number & _SEEDS) & LOW_HALF)

    def unpack_many(self, data: bytes, number: int) -> Iterator[Record]:
        """Decode records up to the first that does not check. `number` is that of the first."""
        if number == 0:
            yield from _unpack_old(data[:RECORD_SIZE])
            data, number = data[RECORD_SIZE:], 1
        whole = len(data) - len(data) % RECORD_SIZE
        view = memoryview(data)[:whole]
        digest, body, position, seed = _digest, _BODY.size, 0, self._seed + number
        for kind, stream, length, offset, stream_offset, time_ns, content, check in _WHOLE.iter_unpack(view):
            if digest(view[position : position + body], seed & _SEEDS) & LOW_HALF != check:
                return
            if kind not in _KINDS or stream not in _STREAMS:
                return
            yield Record(_KINDS[kind], _STREAMS[stream], offset, length, stream_offset, time_ns, content)
            position += RECORD_SIZE
            seed += 1


class OldCodec:
    """Formats 1 and 2, whose records do not know their bytes, their job or their number."""

    versions = range(1, 3)
    tie = 0

    def pack(self, number: int, record: Record) -> bytes:  # noqa: ARG002
        """Encode a record into RECORD_SIZE bytes."""
        return _pack_old(record)

    def unpack_many(self, data: bytes, number: int) -> Iterator[Record]:  # noqa: ARG002
        """Decode records up to the first that does not check."""
        return _unpack_old(data)


def _pack_old(record: Record) -> bytes:
    body = _OLD_BODY.pack(
        record.kind, record.stream or 0, record.length, record.offset, record.stream_offset, record.time_ns
    )
    return body + _OLD_CHECK.pack(_digest(body))


def _unpack_old(data: bytes) -> Iterator[Record]:
    whole = len(data) - len(data) % RECORD_SIZE
    view = memoryview(data)[:whole]
    for position, fields in zip(range(0, whole, RECORD_SIZE), _OLD_WHOLE.iter_unpack(view), strict=True):
        kind, stream, length, offset, stream_offset, time_ns, check = fields
        if _digest(view[position : position + _OLD_BODY.size]) != check:
            return
        if kind not in _KINDS or stream not in _STREAMS:
            return
        yield Record(_KINDS[kind], _STREAMS[stream], offset, length, stream_offset, time_ns)
