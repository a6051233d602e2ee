"""The wire format of a log's events, several at a time: nearly every byte sent goes through here.

Output events are written without building messages. Field numbers and types are those of `StreamLogResponse` and
`Output` in api.proto; a test compares the bytes with what betterproto2 makes of the same event.
"""

from collections.abc import Iterable

from worker_api.worker.v1 import Gap, StreamLogResponse

from workerd.engine import reader
from workerd.engine.job import JobEnd
from workerd.network.codec import Encoded
from workerd.translate import to_end

# Tags: field number << 3 | wire type (https://protobuf.dev/programming-guides/encoding, "Message Structure").
_RESPONSE_OUTPUT = b"\x0a"
_OFFSET, _STREAM, _TIME, _STREAM_OFFSET, _DATA = b"\x08", b"\x10", b"\x18", b"\x20", b"\x2a"
# What stands before each message: that it is not compressed, and its length in four bytes, big-endian
# (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message").
_UNCOMPRESSED = b"\0"
_SHORT = [bytes((value,)) for value in range(0x80)]


def encode_events(events: Iterable[reader.Output | reader.Gap | JobEnd]) -> Encoded:
    """Encode events, each as one StreamLogResponse."""
    parts: list[bytes] = []
    for event in events:
        match event:
            case reader.Output(data=data):
                parts += frame(_head(event), data)
            case reader.Gap(start=start, end=end):
                parts += frame(bytes(StreamLogResponse(gap=Gap(from_offset_bytes=start, to_offset_bytes=end))))
            case JobEnd():
                parts += frame(bytes(StreamLogResponse(end=to_end(event))))
    return Encoded(b"".join(parts))


def frame(*parts: bytes) -> tuple[bytes, ...]:
    """Put before the parts of a message what stands before each message."""
    return _UNCOMPRESSED, sum(map(len, parts)).to_bytes(4), *parts


def varint(value: int) -> bytes:
    """Encode a number that is not negative."""
    if value <= 0x7F:
        return _SHORT[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _head(output: reader.Output) -> bytes:
    """Encode a StreamLogResponse that holds an output event, all but the data, which comes last.

    Zeros are left out, as proto3 has it.
    """
    fields = bytearray()
    for tag, value in (
        (_OFFSET, output.offset),
        (_STREAM, output.stream),
        (_TIME, output.time_ns),
        (_STREAM_OFFSET, output.stream_offset),
    ):
        if value:
            fields += tag
            fields += varint(value)
    fields += _DATA
    fields += varint(len(output.data))
    return _RESPONSE_OUTPUT + varint(len(fields) + len(output.data)) + bytes(fields)
