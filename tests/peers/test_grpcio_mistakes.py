"""Calls of grpcio's that cannot be answered: what is no message, names nothing, or asks for what cannot be."""

import importlib
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.peers.grpcio_peer import SECONDS, STDERR_BYTES, STDOUT_BYTES, Peer, Printed

# Neither has types for a checker to see.
DecodeError: Any = importlib.import_module("google.protobuf.message").DecodeError
status_pb2: Any = importlib.import_module("google.rpc.status_pb2")

RPCS = ("Spawn", "Stop", "Status", "StreamLog", "List", "WhoAmI")
NOBODY_S_JOB = "123e4567-e89b-42d3-a456-426614174000"


def failure(raised: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str, str]:
    """Read status, reason and subject off a failed call, and see that all its parts agree."""
    error: Any = raised.value
    packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    assert status.message
    (detail,) = status.details
    assert detail.type_url == "type.googleapis.com/worker.v1.ErrorDetail"
    pb = importlib.import_module("worker.v1.api_pb2")
    unpacked = pb.ErrorDetail()
    assert detail.Unpack(unpacked)
    return error.code(), pb.ErrorReason.Name(unpacked.reason).removeprefix("ERROR_REASON_"), unpacked.subject


@pytest.mark.parametrize("rpc", ["Status", "Stop", "StreamLog"])
def test_malformed_job_id_is_an_invalid_argument(peer: Peer, rpc: str) -> None:
    for job_id in ("", "nonsense", NOBODY_S_JOB[:-1], f"{{{NOBODY_S_JOB}}}", NOBODY_S_JOB.replace("-", ""), "../jobs"):
        with pytest.raises(grpc.RpcError) as raised:
            peer.call(rpc, getattr(peer.pb, f"{rpc}Request")(job_id=job_id))
        assert failure(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "JOB_ID_MALFORMED", "job_id")


@pytest.mark.parametrize("rpc", ["Status", "Stop", "StreamLog"])
def test_unknown_job_is_not_found(peer: Peer, rpc: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        peer.call(rpc, getattr(peer.pb, f"{rpc}Request")(job_id=NOBODY_S_JOB))
    assert failure(raised) == (grpc.StatusCode.NOT_FOUND, "JOB_NOT_FOUND", "job_id")


@pytest.mark.parametrize("path", ["/worker.v1.WorkerService/Nap", "/worker.v2.WorkerService/Status", "/Status"])
def test_unknown_rpc_is_unimplemented(peer: Peer, path: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        peer.channel.unary_unary(path)(b"", timeout=SECONDS)
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_request_is_unimplemented(peer: Peer, compression: grpc.Compression) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        peer.stub.Spawn(
            peer.pb.SpawnRequest(program="true", args=["x" * 10_000]), timeout=SECONDS, compression=compression
        )
    assert failure(raised) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED", "")


def test_metadata_that_is_too_long_costs_its_call_alone(peer: Peer) -> None:
    for length, code in ((20_000, grpc.StatusCode.RESOURCE_EXHAUSTED), (10_000, grpc.StatusCode.OK)):
        call = peer.stub.WhoAmI.with_call
        try:
            call(peer.pb.WhoAmIRequest(), timeout=SECONDS, metadata=(("note", "x" * length),))
            found = grpc.StatusCode.OK
        except grpc.RpcError as raised:
            error: Any = raised
            found = error.code()
        assert found is code


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize(
    "request_bytes",
    [b"\xff\xff\xff\xff", b"\x0a\x7fshort", b"\x08", b"\x9b\x06", b"\x0f\x01"],
    ids=["unfinished tag", "length beyond the end", "no value", "group that never ends", "wire type seven"],
)
def test_bytes_that_are_no_message_are_an_invalid_argument(peer: Peer, rpc: str, request_bytes: bytes) -> None:
    with pytest.raises(DecodeError):
        getattr(peer.pb, f"{rpc}Request").FromString(request_bytes)
    with pytest.raises(grpc.RpcError) as raised:
        peer.call_raw(rpc, request_bytes)
    assert failure(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", "request")


@pytest.mark.parametrize(
    ("rpc", "inner"),
    [
        ("Spawn", b"\x1a\x04\x0a\x7fAB"),
        ("Spawn", b"\x1a\x01\xff"),
        ("Spawn", b"\x3a\x03\x08\x01\xff"),
        ("Stop", b"\x12\x01\xff"),
    ],
    ids=[
        "text beyond an entry",
        "unfinished tag in an entry",
        "unfinished tag in a timeout",
        "unfinished tag in a grace",
    ],
)
def test_message_within_a_message_is_decoded_as_strictly(peer: Peer, printed: Printed, rpc: str, inner: bytes) -> None:
    message = peer.pb.SpawnRequest(program="true") if rpc == "Spawn" else peer.pb.StopRequest(job_id=printed.job_id)
    request_bytes = message.SerializeToString() + inner
    with pytest.raises(DecodeError):
        type(message).FromString(request_bytes)
    with pytest.raises(grpc.RpcError) as raised:
        peer.call_raw(rpc, request_bytes)
    assert failure(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", "request")


@pytest.mark.parametrize("rpc", RPCS)
@pytest.mark.parametrize("number", range(1, 9))
def test_field_of_another_wire_type_is_no_fault_of_the_daemon(
    peer: Peer, printed: Printed, rpc: str, number: int
) -> None:
    """The official parsers pass such a field over; refusing it is as good."""
    message = getattr(peer.pb, f"{rpc}Request")()
    if rpc == "Spawn":
        message.program = "true"
    elif rpc in {"Status", "Stop", "StreamLog"}:
        message.job_id = printed.job_id
    for wire_type, content in ((0, b"\x01"), (1, b"\x01" * 8), (2, b"\x01\x01"), (5, b"\x01" * 4)):
        request_bytes = message.SerializeToString() + bytes([number << 3 | wire_type]) + content
        try:
            peer.call_raw(rpc, request_bytes)
        except grpc.RpcError as raised:
            error: Any = raised
            assert error.code() not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}, request_bytes


@pytest.mark.parametrize(("first", "last"), [("offset_bytes", "anchor"), ("anchor", "last_bytes")])
def test_of_two_starts_of_a_log_the_last_wins_or_both_are_refused(
    peer: Peer, printed: Printed, first: str, last: str
) -> None:
    """No official library sends two members of a oneof; their parsers take the last."""
    values = {"offset_bytes": 7, "anchor": peer.pb.LOG_ANCHOR_NOW, "last_bytes": 0}
    request_bytes = b"".join(
        peer.pb.StreamLogRequest(job_id=printed.job_id, **{field: values[field]}).SerializeToString()
        for field in (first, last)
    )
    try:
        (event,) = map(peer.pb.StreamLogResponse.FromString, peer.call_raw("StreamLog", request_bytes))
        assert event.HasField("end")
    except grpc.RpcError as raised:
        error: Any = raised
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("rpc", ["Spawn", "Status", "Stop", "StreamLog"])
def test_text_that_is_not_utf8_is_an_invalid_argument(peer: Peer, rpc: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        peer.call_raw(rpc, b"\x0a\x02\xc3\x28")
    assert failure(raised) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "ARGUMENT_INVALID",
        "program" if rpc == "Spawn" else "job_id",
    )


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("Spawn", {}, "program"),
    ("Spawn", {"program": "./here"}, "program"),
    ("Spawn", {"program": "true", "args": ["a\0b"]}, "args"),
    ("Spawn", {"program": "true", "envs": {"A=B": "c"}}, "envs"),
    ("Spawn", {"program": "true", "envs": {"": "c"}}, "envs"),
    ("Spawn", {"program": "true", "working_directory": "here"}, "working_directory"),
    ("Spawn", {"program": "true", "request_key": "k" * 257}, "request_key"),
    ("Spawn", {"program": "true", "name": "ü" * 129}, "name"),
    ("Spawn", {"program": "true", "timeout": {}}, "timeout"),
    ("Spawn", {"program": "true", "timeout": {"seconds": -1}}, "timeout"),
    ("List", {"page_size": 1001}, "page_size"),
    ("List", {"page_size": -1}, "page_size"),
    ("List", {"page_token": "nonsense"}, "page_token"),
    ("List", {"page_token": "1.nonsense"}, "page_token"),
    ("List", {"page_token": f"{2**63}.{NOBODY_S_JOB}"}, "page_token"),
    ("List", {"states": [0]}, "states"),
    ("List", {"states": [99]}, "states"),
]


@pytest.mark.parametrize(("rpc", "fields", "subject"), INVALID)
def test_impossible_value_is_an_invalid_argument_that_names_its_field(
    peer: Peer, rpc: str, fields: dict[str, Any], subject: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        peer.call(rpc, getattr(peer.pb, f"{rpc}Request")(**fields))
    assert failure(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", subject)


INVALID_OF_A_JOB: list[tuple[str, dict[str, Any], str]] = [
    ("Stop", {"grace": {"seconds": -1}}, "grace"),
    ("StreamLog", {"offset_bytes": STDOUT_BYTES + STDERR_BYTES + 1}, "offset_bytes"),
    ("StreamLog", {"offset_bytes": 2**64 - 1}, "offset_bytes"),
    ("StreamLog", {"anchor": 99}, "anchor"),
    ("StreamLog", {"streams": [0]}, "streams"),
    ("StreamLog", {"streams": [1, 99]}, "streams"),
]


@pytest.mark.parametrize(("rpc", "fields", "subject"), INVALID_OF_A_JOB)
def test_impossible_value_about_a_job_is_an_invalid_argument_that_names_its_field(
    peer: Peer, printed: Printed, rpc: str, fields: dict[str, Any], subject: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        peer.call(rpc, getattr(peer.pb, f"{rpc}Request")(job_id=printed.job_id, **fields))
    assert failure(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", subject)


@pytest.mark.parametrize(
    ("program", "reason"),
    [("/no/such/program", "PROGRAM_NOT_FOUND"), ("no-such-program", "PROGRAM_NOT_FOUND")],
)
def test_program_that_is_not_there_is_a_failed_precondition(peer: Peer, program: str, reason: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        peer.spawn(program)
    assert failure(raised) == (grpc.StatusCode.FAILED_PRECONDITION, reason, program)


def test_program_that_cannot_be_executed_is_a_failed_precondition(peer: Peer, tmp_path: Path) -> None:
    program = tmp_path / "text"
    program.write_text("no program")
    program.chmod(0o600)
    with pytest.raises(grpc.RpcError) as raised:
        peer.spawn(str(program))
    assert failure(raised) == (grpc.StatusCode.FAILED_PRECONDITION, "PROGRAM_NOT_EXECUTABLE", str(program))


def test_working_directory_that_is_not_there_is_a_failed_precondition(peer: Peer, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(grpc.RpcError) as raised:
        peer.spawn("true", working_directory=missing)
    assert failure(raised) == (grpc.StatusCode.FAILED_PRECONDITION, "WORKING_DIRECTORY_UNUSABLE", missing)
