"""What reaches into betterproto2 still finds there what it relies on."""

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker_api.worker.v1 import Job, SpawnRequest, StopRequest, StreamLogRequest

from workerd.engine.errors import InvalidArgument
from workerd.network.wire import check

# It has no types for a checker to see.
Duration: Any = importlib.import_module("google.protobuf.duration_pb2").Duration
Timestamp: Any = importlib.import_module("google.protobuf.timestamp_pb2").Timestamp


def description(message_type: Any) -> Any:
    return message_type._betterproto


def test_betterproto2_still_describes_messages_as_it_did() -> None:
    known = description(StreamLogRequest)
    assert known.field_name_by_number[3] == "offset_bytes"
    offset = known.meta_by_field_name["offset_bytes"]
    assert (offset.proto_type, offset.group, offset.repeated, offset.unwrap) == ("uint64", "start", False, None)
    assert known.meta_by_field_name["streams"].repeated
    assert description(SpawnRequest).meta_by_field_name["envs"].proto_type == "map"
    assert description(SpawnRequest).meta_by_field_name["timeout"].unwrap is not None
    assert description(Job).cls_by_field["end"].__name__ == "JobEnd"


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x05abcd", b"\x0a", b"\x0d\x01\x02\x03\x04", b"\x1a\x03\x0a\x05a", b"\x3a\x02\x08"],
    ids=["text cut off", "tag alone", "number for text", "map entry cut off", "duration cut off"],
)
def test_what_betterproto2_would_pass_over_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        check(data, SpawnRequest)


def numbers(bits: int, edges: Sequence[int]) -> st.SearchStrategy[int]:
    """Make numbers of a size, many of them beside edges."""
    beside = st.sampled_from(edges).flatmap(lambda edge: st.sampled_from((edge - 1, edge, edge + 1)))
    return st.one_of(beside, st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))


SECONDS = numbers(64, (0, 315_576_000_000, -315_576_000_000, 253_402_300_799, -62_135_596_800))
NANOS = numbers(32, (0, 999_999_999, -999_999_999))


@pytest.mark.parametrize(
    ("official", "message_type", "field", "tag"),
    [(Duration, SpawnRequest, "timeout", b"\x3a"), (Timestamp, Job, "created_at", b"\x42")],
    ids=["Duration", "Timestamp"],
)
def test_a_time_is_taken_where_the_official_library_takes_it(
    official: Any, message_type: Any, field: str, tag: bytes
) -> None:
    @settings(deadline=None)
    @given(SECONDS, NANOS)
    def check_both(seconds: int, nanos: int) -> None:
        time = official(seconds=seconds, nanos=nanos)
        data = time.SerializeToString()
        request = tag + bytes([len(data)]) + data
        try:
            time.ToJsonString()
        except ValueError:
            with pytest.raises(InvalidArgument, match=f"^{field} cannot "):
                check(request, message_type)
        else:
            if official is Duration and seconds == 0 and -1000 < nanos < 0:
                return
            check(request, message_type)
            assert getattr(message_type.FromString(request), field) is not None

    check_both()


@pytest.mark.parametrize("nanos", [-1, -500, -501, -999])
def test_a_negative_time_is_never_taken_for_zero(nanos: int) -> None:
    """It would be one that `timedelta` has no number for."""
    data = Duration(nanos=nanos).SerializeToString()
    with pytest.raises(InvalidArgument, match=r"^grace cannot be .* it is negative"):
        check(b"\x12" + bytes([len(data)]) + data, StopRequest)
