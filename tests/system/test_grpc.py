"""Calls that are answered with gRPC's own status before they reach a handler.

The answers are those of doc/PROTOCOL-HTTP2.md, doc/compression.md and doc/statuscodes.md in
https://github.com/grpc/grpc.
"""

import asyncio
import base64
import gzip
from collections.abc import Iterator

import pytest
from grpclib.const import Status
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived
from worker_api.google.rpc import Status as StatusMessage
from worker_api.worker.v1 import (
    ErrorDetail,
    ErrorReason,
    ListRequest,
    ListResponse,
    SpawnRequest,
    StreamLogRequest,
    WhoAmIResponse,
)

from tests.daemon import Daemon
from tests.protobuf import block, varint
from tests.raw import Peer, peer

COMPRESSED = gzip.compress(b"")
EMPTY = b"\0\0\0\0\0"


@pytest.fixture
def caller(shared_daemon: Daemon) -> Iterator[Peer]:
    """A connection to the module's daemon."""
    with peer(shared_daemon) as connection:
        yield connection


def flagged(data: bytes, flag: int = 1) -> bytes:
    """Put the flag and the length before a message."""
    return bytes([flag]) + len(data).to_bytes(4) + data


def answer(peer: Peer, rpc: str, data: bytes, *headers: tuple[str, str]) -> dict[str, str]:
    """Make a call, and return the headers and trailers of its answer."""
    stream_id = peer.open(rpc, *headers)
    if data:
        peer.h2.send_data(stream_id, data, end_stream=True)
    else:
        peer.h2.end_stream(stream_id)
    peer.send()
    return end(peer, stream_id)


def end(peer: Peer, stream_id: int) -> dict[str, str]:
    """Wait for the end of a call, and return the headers and trailers of its answer."""
    while not any(isinstance(event, StreamEnded) and event.stream_id == stream_id for event in peer.events):
        assert isinstance(peer.read(StreamEnded), StreamEnded), "the call was not answered"
    return {
        name.decode(): value.decode()
        for event in peer.events
        if isinstance(event, ResponseReceived | TrailersReceived) and event.stream_id == stream_id
        for name, value in event.headers
    }


def outcome(headers: dict[str, str]) -> tuple[Status, ErrorReason, str]:
    """Read the status, the reason and its subject off an answer."""
    packed = headers["grpc-status-details-bin"]
    (detail,) = StatusMessage.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4))).details
    unpacked = detail.unpack()
    assert isinstance(unpacked, ErrorDetail)
    return Status(int(headers["grpc-status"])), unpacked.reason, unpacked.subject


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "snappy", "x-of-somebody"])
def test_request_in_a_compression_that_is_not_accepted_is_unimplemented_and_told_what_is(
    caller: Peer, encoding: str
) -> None:
    headers = answer(caller, "WhoAmI", flagged(COMPRESSED), ("grpc-encoding", encoding))
    assert outcome(headers) == (Status.UNIMPLEMENTED, ErrorReason.UNSUPPORTED, "")
    assert headers["grpc-accept-encoding"] == "identity"
    assert encoding in headers["grpc-message"] and "identity" in headers["grpc-message"]


@pytest.mark.parametrize("headers", [(), (("grpc-encoding", "identity"),)], ids=["no header", "identity"])
def test_request_that_is_compressed_in_no_way_is_internal(caller: Peer, headers: tuple[tuple[str, str], ...]) -> None:
    told = answer(caller, "WhoAmI", flagged(COMPRESSED), *headers)
    assert outcome(told) == (Status.INTERNAL, ErrorReason.FRAMING_INVALID, "")
    assert "compressed" in told["grpc-message"]


@pytest.mark.parametrize(
    "data",
    [flagged(b"", 2), flagged(b"", 0x80), b"\0\0", b"\0\0\0\0\x10x"],
    ids=["flag 2", "flag 128", "a head cut off", "a message cut off"],
)
def test_framing_that_is_none_is_internal_and_no_fault_of_the_daemon(
    caller: Peer, shared_daemon: Daemon, data: bytes
) -> None:
    headers = answer(caller, "WhoAmI", data)
    assert outcome(headers) == (Status.INTERNAL, ErrorReason.FRAMING_INVALID, "")
    assert "a call failed" not in shared_daemon.errors()


def test_compression_that_is_named_and_not_used_is_accepted(caller: Peer) -> None:
    headers = answer(caller, "WhoAmI", EMPTY, ("grpc-encoding", "gzip"))
    assert headers["grpc-status"] == "0"
    assert headers["grpc-accept-encoding"] == "identity"


@pytest.mark.parametrize("rpc", ["WhoAmI", "StreamLog"])
@pytest.mark.parametrize("count", [0, 2, 50])
def test_number_of_requests_other_than_one_is_unimplemented(caller: Peer, rpc: str, count: int) -> None:
    headers = answer(caller, rpc, EMPTY * count)
    assert outcome(headers) == (Status.UNIMPLEMENTED, ErrorReason.UNSUPPORTED, "")
    assert "one" in headers["grpc-message"]


def test_second_request_that_comes_later_is_unimplemented_and_nothing_is_done(caller: Peer) -> None:
    stream_id = caller.open("Spawn")
    spawn = bytes(SpawnRequest(program="true", name="never"))
    caller.request(stream_id, spawn, end=False)
    caller.send()
    assert caller.read(StreamEnded, 0.5) is None  # the call has not ended: there may be more of it
    caller.request(stream_id, spawn, end=True)
    caller.send()
    assert outcome(end(caller, stream_id))[0] is Status.UNIMPLEMENTED
    answer(caller, "List", flagged(bytes(ListRequest(name="never")), 0))
    data = b"".join(event.data for event in caller.events if isinstance(event, DataReceived))
    assert ListResponse.FromString(data[5:]).jobs == []


def test_unknown_rpc_is_unimplemented_with_a_reason(caller: Peer) -> None:
    assert outcome(answer(caller, "Nap", EMPTY)) == (Status.UNIMPLEMENTED, ErrorReason.UNSUPPORTED, "")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/grpc", "200"),
        ("application/grpc+proto", "200"),
        ("application/grpc;charset=utf-8", "200"),
        ("application/grpc+proto; a=b", "200"),
        ("application/grpc-web", "415"),
        ("application/grpc+json", "415"),
        ("text/plain", "415"),
    ],
)
def test_content_type_decides_whether_it_is_a_call(caller: Peer, content_type: str, status: str) -> None:
    stream_id = caller.h2.get_next_available_stream_id()
    required = [(":method", "POST"), (":scheme", "https"), (":path", "/worker.v1.WorkerService/WhoAmI")]
    more = [(":authority", "localhost"), ("te", "trailers"), ("content-type", content_type)]
    caller.h2.send_headers(stream_id, required + more)
    caller.h2.send_data(stream_id, EMPTY, end_stream=True)
    caller.send()
    headers = end(caller, stream_id)
    assert headers[":status"] == status
    assert headers["grpc-status"] == ("0" if status == "200" else "2")


def test_method_other_than_post_is_told_which_is_allowed(caller: Peer) -> None:
    """RFC 9110 §15.5.6."""
    stream_id = caller.h2.get_next_available_stream_id()
    required = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "localhost")]
    caller.h2.send_headers(stream_id, required, end_stream=True)
    caller.send()
    headers = end(caller, stream_id)
    assert (headers[":status"], headers["allow"]) == ("405", "POST")


def test_metadata_that_is_not_ascii_fails_no_call(caller: Peer) -> None:
    assert answer(caller, "WhoAmI", EMPTY, ("x-data", "caf\u00e9"))["grpc-status"] == "0"


def test_username_that_is_not_ascii_is_an_invalid_argument(caller: Peer) -> None:
    told = answer(caller, "WhoAmI", EMPTY, ("workerd-username", "\u0430crimon"))
    assert outcome(told) == (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID, "workerd-username")


@pytest.mark.parametrize("size", [17_000, 40_000, 60_000])
def test_headers_that_are_too_long_cost_their_call_and_no_other(caller: Peer, shared_daemon: Daemon, size: int) -> None:
    """The block adds to the table of the compression, which later blocks refer to (RFC 7541 §2.3.2)."""
    job_id = asyncio.run(_spawn(shared_daemon))
    follower = caller.open("StreamLog")
    caller.request(follower, bytes(StreamLogRequest(job_id=job_id, follow=True)))
    caller.send()
    assert isinstance(caller.read(DataReceived), DataReceived)
    long = tuple((f"note-{number}", "x" * 1000) for number in range(size // 1000))
    headers = answer(caller, "WhoAmI", EMPTY, *long, ("workerd-username", "acrimon"))
    assert outcome(headers) == (Status.RESOURCE_EXHAUSTED, ErrorReason.LIMIT_REACHED, "max-header-bytes")
    assert "limit=max-header-bytes" in shared_daemon.errors()
    for _ in range(2):
        again = answer(caller, "WhoAmI", EMPTY, ("workerd-username", "acrimon"), long[-1])
        assert again["grpc-status"] == "0"
    whoami = [event.data for event in caller.events if isinstance(event, DataReceived)][-1]
    user = WhoAmIResponse.FromString(whoami[5:]).user
    assert user is not None and user.name == "acrimon"
    asyncio.run(_stop(shared_daemon, job_id))
    assert end(caller, follower)["grpc-status"] == "0"


async def _spawn(daemon: Daemon) -> str:
    async with daemon.client() as client:
        return await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))


async def _stop(daemon: Daemon, job_id: str) -> None:
    async with daemon.client() as client:
        await client.stop(job_id)


def duration(seconds: int, nanos: int = 0) -> bytes:
    """Encode a Duration, of any numbers."""
    return b"\x08" + varint(seconds) + (b"\x10" + varint(nanos) if nanos else b"")


JOB_ID = block(1, b"123e4567-e89b-42d3-a456-426614174000")
PROGRAM = block(1, b"true")
IMPOSSIBLE = {
    "timeout over the range": ("Spawn", PROGRAM + block(7, duration(315_576_000_001)), "timeout"),
    "timeout beyond all numbers": ("Spawn", PROGRAM + block(7, duration(2**63 - 1)), "timeout"),
    "timeout of too many nanos": ("Spawn", PROGRAM + block(7, duration(1, 10**9)), "timeout"),
    "timeout of two signs": ("Spawn", PROGRAM + block(7, duration(1, -1)), "timeout"),
    "timeout of nothing": ("Spawn", PROGRAM + block(7, b""), "timeout"),
    "negative timeout": ("Spawn", PROGRAM + block(7, duration(-1)), "timeout"),
    "grace over the range": ("Stop", JOB_ID + block(2, duration(315_576_000_001)), "grace"),
    "grace under the range": ("Stop", JOB_ID + block(2, duration(-315_576_000_001)), "grace"),
    "grace of two signs": ("Stop", JOB_ID + block(2, duration(-1, 1)), "grace"),
    "lifetime over the range": ("IssueCredential", block(3, duration(2**62)), "lifetime"),
    "a stream that is none": ("StreamLog", JOB_ID + b"\x28\x07", "streams"),
    "a negative stream": ("StreamLog", JOB_ID + b"\x28" + varint(-1), "streams"),
    "packed streams": ("StreamLog", JOB_ID + block(5, b"\x01\x07"), "streams"),
    "an anchor that is none": ("StreamLog", JOB_ID + b"\x10\x63", "anchor"),
    "a state that is none": ("List", b"\x08\x63", "states"),
    "a program that is not UTF-8": ("Spawn", block(1, b"\xc3("), "program"),
    "a variable that is not UTF-8": ("Spawn", PROGRAM + block(3, block(1, b"A") + block(2, b"\xff")), "envs"),
    "an id that is not UTF-8": ("Status", block(1, b"\xed\xa0\x80"), "job_id"),
    "the state that is not set": ("List", b"\x08\x00", "states"),
}


@pytest.mark.parametrize(("rpc", "request_bytes", "field"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_value_that_its_type_does_not_have_is_an_invalid_argument_in_the_words_of_the_contract(
    caller: Peer, rpc: str, request_bytes: bytes, field: str
) -> None:
    headers = answer(caller, rpc, flagged(request_bytes, 0))
    assert outcome(headers) == (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID, field)
    assert headers["grpc-message"].startswith(f"{field} ")
    assert not any(python in headers["grpc-message"] for python in ("<", "UNKNOWN", "Error", "codec", "timedelta"))
    assert "--" not in headers["grpc-message"]


def test_the_longest_duration_is_taken(caller: Peer, shared_daemon: Daemon) -> None:
    headers = answer(caller, "Spawn", flagged(PROGRAM + block(7, duration(315_576_000_000, 999_999_999)), 0))
    assert headers["grpc-status"] == "0"
    assert not list(shared_daemon.state.glob("jobs/*/fault"))
