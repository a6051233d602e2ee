"""Output events encoded by hand are what betterproto2 would have made of them."""

from hypothesis import given
from hypothesis import strategies as st
from worker_api.worker.v1 import Gap as GapMessage
from worker_api.worker.v1 import Output as OutputMessage
from worker_api.worker.v1 import Stream as StreamMessage
from worker_api.worker.v1 import StreamLogResponse

from workerd.engine.job import Stream
from workerd.engine.reader import Gap, Output
from workerd.network.encoding import encode_events

OFFSETS = st.integers(0, 2**64 - 1)
OUTPUTS = st.builds(
    Output, OFFSETS, st.sampled_from(Stream), st.integers(0, 2**63 - 1), OFFSETS, st.binary(min_size=1, max_size=70_000)
)
GAPS = st.builds(Gap, OFFSETS, OFFSETS)


def message_of(event: Output | Gap) -> StreamLogResponse:
    if isinstance(event, Gap):
        return StreamLogResponse(gap=GapMessage(from_offset_bytes=event.start, to_offset_bytes=event.end))
    return StreamLogResponse(
        output=OutputMessage(
            offset_bytes=event.offset,
            stream=StreamMessage(int(event.stream)),
            time_unix_nano=event.time_ns,
            stream_offset_bytes=event.stream_offset,
            data=event.data,
        )
    )


@given(st.lists(OUTPUTS | GAPS, max_size=5))
def test_events_are_encoded_as_their_messages_each_with_its_length(events: list[Output | Gap]) -> None:
    messages = [bytes(message_of(event)) for event in events]
    assert encode_events(events).data == b"".join(b"\0" + len(data).to_bytes(4, "big") + data for data in messages)
