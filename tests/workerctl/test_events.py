"""Events decoded by hand are what betterproto2 makes of the same bytes."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_api.worker.v1 import Exited, Gap, JobEnd, Stream, StreamLogResponse
from worker_api.worker.v1 import Output as OutputMessage

from workerctl.errors import EventUnknown
from workerctl.events import Output, decode_event

OFFSETS = st.integers(0, 2**64 - 1)
MESSAGES = st.builds(
    OutputMessage,
    offset_bytes=OFFSETS,
    stream=st.sampled_from(Stream),
    time_unix_nano=st.integers(0, 2**63 - 1),
    stream_offset_bytes=OFFSETS,
    data=st.binary(max_size=70_000),
)
UNKNOWN_FIELD = b"\xfa\x01\x03new"  # number 31, three bytes


def decode(data: bytes) -> object:
    return decode_event(memoryview(data))


def values_of(message: OutputMessage) -> Output:
    return Output(
        message.offset_bytes, message.stream, message.time_unix_nano, message.stream_offset_bytes, message.data
    )


@given(MESSAGES)
def test_an_output_event_is_what_its_message_says(message: OutputMessage) -> None:
    assert decode(bytes(StreamLogResponse(output=message))) == values_of(message)


@given(MESSAGES)
def test_what_a_newer_daemon_adds_is_passed_over(message: OutputMessage) -> None:
    assert decode(bytes(StreamLogResponse(output=message)) + UNKNOWN_FIELD) == values_of(message)
    inner = bytes(dataclasses.replace(message, data=message.data[:60])) + UNKNOWN_FIELD
    assert decode(bytes((0x0A, len(inner))) + inner) == values_of(OutputMessage.FromString(inner))


def test_other_events_are_their_messages() -> None:
    gap, end = Gap(from_offset_bytes=1, to_offset_bytes=2), JobEnd(exited=Exited(code=3))
    assert decode(bytes(StreamLogResponse(gap=gap))) == gap
    assert decode(bytes(StreamLogResponse(end=end))) == end


@pytest.mark.parametrize("data", [b"", UNKNOWN_FIELD])
def test_an_event_of_an_unknown_kind_is_an_error(data: bytes) -> None:
    with pytest.raises(EventUnknown, match="update it"):
        decode(data)
