"""What reaches into betterproto2 still finds there what it relies on."""

from typing import Any

import pytest
from worker_api.worker.v1 import Job, SpawnRequest, StreamLogRequest

from workerd.network.wire import check


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
