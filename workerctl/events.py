"""The events of a log, and how they are read off the wire.

Output events are decoded without building messages: nearly every byte received comes through here. Field numbers and
types are those of `StreamLogResponse` and `Output` in api.proto; a test compares what is read with what betterproto2
makes of the same bytes. Whatever the short way does not know, betterproto2 decodes.
"""

from dataclasses import dataclass

from worker_api.worker.v1 import Gap, JobEnd, Stream, StreamLogResponse

from workerctl.errors import EventUnknown

# Tags: field number << 3 | wire type (https://protobuf.dev/programming-guides/encoding, "Message Structure").
_RESPONSE_OUTPUT = 0x0A
_OFFSET, _STREAM, _TIME, _STREAM_OFFSET, _DATA = 0x08, 0x10, 0x18, 0x20, 0x2A
_STREAMS = {int(stream): stream for stream in Stream}


@dataclass(slots=True)
class Output:
    """Bytes that a job printed.

    Attributes:
        offset_bytes: of the first byte in the combined output.
        stream: which stream they were printed to.
        time_unix_nano: when the first byte reached the daemon, in nanoseconds since 1970-01-01T00:00:00Z.
        stream_offset_bytes: of the first byte within its own stream.
    """

    offset_bytes: int
    stream: Stream
    time_unix_nano: int
    stream_offset_bytes: int
    data: bytes


LogEvent = Output | Gap | JobEnd


def decode_event(message: memoryview) -> LogEvent:
    """Decode a StreamLogResponse.

    Raises:
        EventUnknown: it holds no event that is known here.
    """
    output = _decode_output(message)
    if output is not None:
        return output
    response = StreamLogResponse.FromString(bytes(message))
    if response.output is not None:
        known = response.output
        return Output(known.offset_bytes, known.stream, known.time_unix_nano, known.stream_offset_bytes, known.data)
    event = response.gap or response.end
    if event is None:
        raise EventUnknown("the log holds an event that this workerctl does not know: update it")
    return event


def _decode_output(message: memoryview) -> Output | None:
    """Decode a response that holds an output event and nothing but known fields; None for any other."""
    fields = {_OFFSET: 0, _STREAM: 0, _TIME: 0, _STREAM_OFFSET: 0}
    data = b""
    try:
        if message[0] != _RESPONSE_OUTPUT:
            return None
        length, position = _varint(message, 1)
        if position + length != len(message):
            return None
        while position < len(message):
            tag = message[position]
            value, position = _varint(message, position + 1)
            if tag == _DATA:
                data = bytes(message[position : position + value])
                position += value
            elif tag in fields:
                fields[tag] = value
            else:
                return None
    except IndexError:
        return None
    if position != len(message) or fields[_STREAM] not in _STREAMS:
        return None
    return Output(fields[_OFFSET], _STREAMS[fields[_STREAM]], fields[_TIME], fields[_STREAM_OFFSET], data)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
