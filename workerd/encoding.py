"""The wire format of output events, written without building messages: nearly every byte sent goes through here.

Field numbers and types are those of `StreamLogResponse` and `Output` in api.proto; a test compares the bytes with what
betterproto2 makes of the same event.
"""

from workerd.codec import Encoded
from workerd.engine.reader import Output

# Tags: field number << 3 | wire type (https://protobuf.dev/programming-guides/encoding, "Message Structure").
_RESPONSE_OUTPUT = b"\x0a"
_OFFSET, _STREAM, _TIME, _STREAM_OFFSET, _DATA = b"\x08", b"\x10", b"\x18", b"\x20", b"\x2a"


def encode_output(output: Output) -> Encoded:
    """Encode a StreamLogResponse that holds an output event; zeros are left out, as proto3 has it."""
    head = b"".join(
        tag + _varint(value)
        for tag, value in (
            (_OFFSET, output.offset),
            (_STREAM, output.stream),
            (_TIME, output.time_ns),
            (_STREAM_OFFSET, output.stream_offset),
        )
        if value
    )
    head += _DATA + _varint(len(output.data))
    return Encoded(b"".join((_RESPONSE_OUTPUT, _varint(len(head) + len(output.data)), head, output.data)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
