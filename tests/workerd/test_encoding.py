"""Output events encoded by hand are what betterproto2 would have made of them."""

from hypothesis import given
from hypothesis import strategies as st
from worker_api.worker.v1 import Output as OutputMessage
from worker_api.worker.v1 import Stream as StreamMessage
from worker_api.worker.v1 import StreamLogResponse

from workerd.encoding import encode_output
from workerd.engine.job import Stream
from workerd.engine.reader import Output


@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from(Stream),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=1, max_size=70_000),
)
def test_an_output_event_is_encoded_as_its_message(
    offset: int, stream: Stream, time_ns: int, stream_offset: int, data: bytes
) -> None:
    message = StreamLogResponse(
        output=OutputMessage(
            offset_bytes=offset,
            stream=StreamMessage(int(stream)),
            time_unix_nano=time_ns,
            stream_offset_bytes=stream_offset,
            data=data,
        )
    )
    assert encode_output(Output(offset, stream, time_ns, stream_offset, data)).data == bytes(message)
