"""The contract as a stranger reads it: the official grpcio, with code that the official compiler made of api.proto.

One file, though a long one: daemon, generated code, connection and a log of some megabytes are made once for all of it.
"""

import importlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import xxhash

from pki.files import key_path
from tests.daemon import USER, Daemon

# Neither has types for a checker to see.
DecodeError: Any = importlib.import_module("google.protobuf.message").DecodeError
status_pb2: Any = importlib.import_module("google.rpc.status_pb2")

ROOT = Path(__file__).parents[2]
RPCS = ("Spawn", "Stop", "Status", "StreamLog", "List", "WhoAmI")
NOBODY_S_JOB = "123e4567-e89b-42d3-a456-426614174000"
SECONDS = 60
STDOUT_BYTES, STDERR_BYTES = 3_000_000, 1_000_001


@dataclass(frozen=True)
class Peer:
    """A connection, the generated messages, and the generated stub."""

    channel: Any
    pb: Any
    stub: Any

    def call(self, rpc: str, request: Any) -> Any:
        """Make a call; one that answers with a stream gives a list."""
        answer = getattr(self.stub, rpc)(request, timeout=SECONDS)
        return list(answer) if rpc == "StreamLog" else answer

    def call_raw(self, rpc: str, request: bytes) -> list[bytes]:
        """Make a call with bytes that grpcio has not made itself."""
        path = f"/worker.v1.WorkerService/{rpc}"
        if rpc == "StreamLog":
            return list(self.channel.unary_stream(path)(request, timeout=SECONDS))
        return [self.channel.unary_unary(path)(request, timeout=SECONDS)]

    def spawn(self, program: str, *args: str, **fields: Any) -> str:
        """Start a job."""
        return str(self.call("Spawn", self.pb.SpawnRequest(program=program, args=args, **fields)).job_id)

    def events(self, job_id: str, **fields: Any) -> list[Any]:
        """Read a log as far as it goes."""
        return list(self.call("StreamLog", self.pb.StreamLogRequest(job_id=job_id, **fields)))

    def ended(self, job_id: str) -> Any:
        """Wait for a job's end and describe the job."""
        self.events(job_id, anchor=self.pb.LOG_ANCHOR_NOW, follow=True)
        return self.call("Status", self.pb.StatusRequest(job_id=job_id)).job


@dataclass(frozen=True)
class Printed:
    """An ended job, what it wrote to each stream, and all of it in the order in which it reached the daemon."""

    job_id: str
    stdout: bytes
    stderr: bytes
    combined: bytes


@pytest.fixture(scope="module")
def peer(shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A client of the module's daemon of which nothing is ours but the contract and the certificates."""
    tree = tmp_path_factory.mktemp("grpcio")
    (tree / "worker" / "v1").mkdir(parents=True)
    shutil.copy(ROOT / "api.proto", tree / "worker" / "v1")
    compiler = (sys.executable, "-m", "grpc_tools.protoc", f"-I{tree}", f"--python_out={tree}")
    subprocess.run([*compiler, f"--grpc_python_out={tree}", "worker/v1/api.proto"], check=True, timeout=SECONDS)
    certificate = shared_daemon.pki.client_certificate(USER)
    credentials = grpc.ssl_channel_credentials(
        shared_daemon.pki.server_ca.read_bytes(), key_path(certificate).read_bytes(), certificate.read_bytes()
    )
    address = shared_daemon.endpoint.removeprefix("https://")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tree)
        pb = importlib.import_module("worker.v1.api_pb2")
        stubs = importlib.import_module("worker.v1.api_pb2_grpc")
        with grpc.secure_channel(address, credentials, [("grpc.enable_http_proxy", 0)]) as channel:
            yield Peer(channel, pb, stubs.WorkerServiceStub(channel))


@pytest.fixture(scope="module")
def printed(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """A job that wrote some megabytes of noise to both streams at once, and has ended."""
    folder = tmp_path_factory.mktemp("printed")
    out, err = folder / "out", folder / "err"
    job_id = peer.spawn(
        *("sh", "-c", 'head -c "$1" /dev/urandom | tee "$2" & head -c "$3" /dev/urandom | tee "$4" >&2; wait', "sh"),
        *(str(STDOUT_BYTES), str(out), str(STDERR_BYTES), str(err)),
    )
    outputs = [event.output for event in peer.events(job_id, follow=True)[:-1]]
    return Printed(job_id, out.read_bytes(), err.read_bytes(), b"".join(output.data for output in outputs))


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


def test_whoami_tells_what_the_certificate_says(peer: Peer) -> None:
    answer = peer.call("WhoAmI", peer.pb.WhoAmIRequest())
    assert answer.user.name == USER
    assert str(uuid.UUID(answer.user.id)) == answer.user.id
    assert answer.spiffe_id == f"spiffe://workerd.internal/user/{answer.user.id}"
    assert {"list", "remove", "spawn", "status", "stop", "stream-log", "whoami"} <= set(answer.rights)
    assert list(answer.rights) == sorted(answer.rights)
    assert answer.certificate_expires_at.seconds > 0


def test_status_gives_back_what_spawn_was_asked_for(peer: Peer, tmp_path: Path) -> None:
    wish = peer.pb.SpawnRequest(
        program="sh",
        args=["-c", 'printf %s "$GREETING" "$PWD"; printf abc >&2; exit 7'],
        envs={"GREETING": "grüß dich, "},
        working_directory=str(tmp_path),
        name="ein Name",
    )
    wish.timeout.FromMilliseconds(61_250)
    job_id = peer.call("Spawn", wish).job_id
    said = b"".join(event.output.data for event in peer.events(job_id, streams=[peer.pb.STREAM_STDOUT], follow=True))
    assert said.decode() == f"grüß dich, {tmp_path}"
    job = peer.call("Status", peer.pb.StatusRequest(job_id=job_id)).job
    assert (job.id, job.owner) == (job_id, peer.call("WhoAmI", peer.pb.WhoAmIRequest()).user)
    assert (job.program, job.args, job.name, job.working_directory) == ("sh", wish.args, "ein Name", str(tmp_path))
    assert (job.timeout, job.state) == (wish.timeout, peer.pb.JOB_STATE_ENDED)
    assert (job.stdout_bytes, job.stderr_bytes) == (len(said), 3)
    assert (job.end.WhichOneof("cause"), job.end.exited.code) == ("exited", 7)
    assert job.pid > 0
    times = [time.ToNanoseconds() for time in (job.created_at, job.started_at, job.end.ended_at)]
    assert times == sorted(times)
    assert job.started_at == job.end.started_at


def test_exit_code_zero_is_told_apart_from_no_end(peer: Peer) -> None:
    job = peer.ended(peer.spawn("true"))
    assert (job.end.WhichOneof("cause"), job.end.exited.code) == ("exited", 0)


def test_death_by_a_signal_of_its_own_is_killed(peer: Peer) -> None:
    job = peer.ended(peer.spawn("sh", "-c", "kill -USR1 $$"))
    assert (job.end.WhichOneof("cause"), job.end.killed.signal) == ("killed", 10)


def test_timeout_stops_the_job(peer: Peer) -> None:
    wish = peer.pb.SpawnRequest(program="sleep", args=["1000"])
    wish.timeout.FromMilliseconds(20)
    job = peer.ended(peer.call("Spawn", wish).job_id)
    assert (job.end.WhichOneof("cause"), job.end.timed_out.signal) == ("timed_out", 15)
    assert job.end.timed_out.timeout == wish.timeout


@pytest.mark.parametrize(
    "days", [25, 3_652_500], ids=["more milliseconds than an int holds", "all that a Duration holds"]
)
def test_timeout_and_grace_may_be_very_long(peer: Peer, days: int) -> None:
    wish = peer.pb.SpawnRequest(program="sh", args=["-c", "trap 'exit 4' TERM; echo ready; sleep 1000 & wait"])
    wish.timeout.FromSeconds(days * 86_400)
    job_id = peer.call("Spawn", wish).job_id
    follower = peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS)
    assert next(follower).output.data == b"ready\n"
    peer.call("Stop", peer.pb.StopRequest(job_id=job_id, grace=wish.timeout))
    (event,) = follower
    assert (event.end.WhichOneof("cause"), event.end.stopped.exit_code) == ("stopped", 4)
    assert peer.ended(job_id).timeout == wish.timeout


def test_stop_with_zero_grace_kills_and_names_who_asked(peer: Peer) -> None:
    job_id = peer.spawn("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")
    request = peer.pb.StopRequest(job_id=job_id)
    request.grace.SetInParent()
    job = peer.call("Stop", request).job
    assert job.id == job_id
    assert job.state in {peer.pb.JOB_STATE_STOPPING, peer.pb.JOB_STATE_ENDED}
    end = peer.ended(job_id).end
    assert (end.WhichOneof("cause"), end.stopped.signal, end.stopped.by) == ("stopped", 9, job.owner)
    assert (end.stopped.WhichOneof("outcome"), end.stopped.killed_by_signal) == ("killed_by_signal", 9)


def test_stop_without_grace_lets_the_program_end_itself(peer: Peer) -> None:
    job_id = peer.spawn("sh", "-c", "trap 'exit 4' TERM; echo ready; sleep 1000 & wait")
    first = next(peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS))
    assert first.output.data == b"ready\n"
    peer.call("Stop", peer.pb.StopRequest(job_id=job_id))
    stopped = peer.ended(job_id).end.stopped
    assert (stopped.signal, stopped.WhichOneof("outcome"), stopped.exit_code) == (15, "exit_code", 4)


def test_stopping_an_ended_job_is_no_error(peer: Peer) -> None:
    job = peer.ended(peer.spawn("true"))
    assert peer.call("Stop", peer.pb.StopRequest(job_id=job.id)).job == job


def test_list_pages_through_all_jobs_of_a_name_newest_first(peer: Peer) -> None:
    name = str(uuid.uuid4())
    spawned = [peer.spawn("true", name=name) for _ in range(5)]
    for job_id in spawned:
        peer.ended(job_id)
    pages: list[list[Any]] = []
    token = ""
    while not pages or token:
        page = peer.call("List", peer.pb.ListRequest(name=name, page_size=2, page_token=token))
        pages.append(list(page.jobs))
        token = page.next_page_token
    jobs = [job for page in pages for job in page]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [job.id for job in jobs] == spawned[::-1]
    assert jobs == [peer.call("Status", peer.pb.StatusRequest(job_id=job.id)).job for job in jobs]


def test_list_tells_states_apart(peer: Peer) -> None:
    name = str(uuid.uuid4())
    running, ended = peer.spawn("sleep", "1000", name=name), peer.spawn("true", name=name)
    peer.ended(ended)
    found = {
        state: [job.id for job in peer.call("List", peer.pb.ListRequest(name=name, states=[state])).jobs]
        for state in (peer.pb.JOB_STATE_RUNNING, peer.pb.JOB_STATE_ENDED)
    }
    assert found == {peer.pb.JOB_STATE_RUNNING: [running], peer.pb.JOB_STATE_ENDED: [ended]}


def test_repeated_request_key_gives_the_same_job(peer: Peer, tmp_path: Path) -> None:
    key, trace = str(uuid.uuid4()), tmp_path / "trace"
    command = ("sh", "-c", f"echo once >>{trace}")
    calls = [
        peer.stub.Spawn.future(
            peer.pb.SpawnRequest(program=command[0], args=command[1:], request_key=key), timeout=SECONDS
        )
        for _ in range(8)
    ]
    (job_id,) = {call.result().job_id for call in calls}
    peer.ended(job_id)
    assert peer.spawn(*command, request_key=key) == job_id
    assert trace.read_text() == "once\n"
    others = [peer.spawn(*command, request_key=key + "'"), peer.spawn(*command), peer.spawn(*command)]
    assert len({job_id, *others}) == 4


def test_log_is_every_byte_in_order_and_its_end_sums_it_up(peer: Peer, printed: Printed) -> None:
    *outputs, last = peer.events(printed.job_id, follow=True)
    assert {event.WhichOneof("event") for event in outputs} == {"output"}
    assert last.WhichOneof("event") == "end"
    offset, streams = 0, {peer.pb.STREAM_STDOUT: b"", peer.pb.STREAM_STDERR: b""}
    for output in (event.output for event in outputs):
        assert output.offset_bytes == offset
        assert output.stream_offset_bytes == len(streams[output.stream])
        streams[output.stream] += output.data
        offset += len(output.data)
    assert streams == {peer.pb.STREAM_STDOUT: printed.stdout, peer.pb.STREAM_STDERR: printed.stderr}
    assert (len(printed.stdout), len(printed.stderr)) == (STDOUT_BYTES, STDERR_BYTES)
    summaries = {summary.stream: (summary.size_bytes, summary.xxh3_128) for summary in last.end.streams}
    assert summaries == {stream: (len(data), xxhash.xxh3_128_digest(data)) for stream, data in streams.items()}
    times = [event.output.time_unix_nano for event in outputs]
    assert times == sorted(times)
    assert times[0] >= last.end.started_at.ToNanoseconds()
    assert times[-1] <= last.end.ended_at.ToNanoseconds() + 1000  # a Timestamp of ours counts whole microseconds


@pytest.mark.parametrize("offset", [0, 1, 65_537, 2_345_678, STDOUT_BYTES + STDERR_BYTES - 1])
def test_log_resumes_at_any_offset(peer: Peer, printed: Printed, offset: int) -> None:
    *outputs, last = peer.events(printed.job_id, offset_bytes=offset, follow=True)
    assert outputs[0].output.offset_bytes == offset
    assert b"".join(event.output.data for event in outputs) == printed.combined[offset:]
    assert last.HasField("end")


def test_log_resumed_at_its_end_is_only_the_end(peer: Peer, printed: Printed) -> None:
    (event,) = peer.events(printed.job_id, offset_bytes=len(printed.combined), follow=True)
    assert event.HasField("end")


@pytest.mark.parametrize("count", [1, 70_000, STDOUT_BYTES + STDERR_BYTES, 2**64 - 1])
def test_last_bytes_are_those_before_the_end(peer: Peer, printed: Printed, count: int) -> None:
    *outputs, last = peer.events(printed.job_id, last_bytes=count)
    assert b"".join(event.output.data for event in outputs) == printed.combined[-count:]
    assert last.HasField("end")


@pytest.mark.parametrize("stream", ["STREAM_STDOUT", "STREAM_STDERR"])
def test_one_stream_alone_is_complete(peer: Peer, printed: Printed, stream: str) -> None:
    number = peer.pb.Stream.Value(stream)
    *outputs, last = peer.events(printed.job_id, streams=[number])
    assert {event.output.stream for event in outputs} == {number}
    wanted = printed.stdout if stream == "STREAM_STDOUT" else printed.stderr
    assert b"".join(event.output.data for event in outputs) == wanted
    for output in (event.output for event in outputs):
        assert printed.combined[output.offset_bytes :].startswith(output.data)
    assert len(last.end.streams) == 2


def test_without_follow_the_log_of_a_running_job_ends_where_it_ends_now(peer: Peer) -> None:
    job_id = peer.spawn("sh", "-c", "echo ready; exec sleep 1000")
    follower = peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS)
    assert next(follower).output.data == b"ready\n"
    (event,) = peer.events(job_id)
    assert event.output.data == b"ready\n"
    assert peer.events(job_id, anchor=peer.pb.LOG_ANCHOR_NOW) == []
    assert peer.events(job_id, last_bytes=0) == []
    assert [event.output.data for event in peer.events(job_id, last_bytes=3)] == [b"dy\n"]
    peer.call("Stop", peer.pb.StopRequest(job_id=job_id))
    (event,) = follower
    assert event.end.WhichOneof("cause") == "stopped"


def test_follower_gets_what_is_printed_later(peer: Peer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = peer.spawn("sh", "-c", f"echo before; read line <{gate}; echo after >&2")
    follower = peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS)
    first = next(follower)
    gate.write_text("go\n")
    second, last = follower
    assert [(event.output.stream, event.output.data) for event in (first, second)] == [
        (peer.pb.STREAM_STDOUT, b"before\n"),
        (peer.pb.STREAM_STDERR, b"after\n"),
    ]
    assert (second.output.offset_bytes, second.output.stream_offset_bytes) == (7, 0)
    assert last.HasField("end")


def test_deadline_of_a_follower_is_kept(peer: Peer) -> None:
    request = peer.pb.StreamLogRequest(job_id=peer.spawn("sleep", "1000"), follow=True)
    with pytest.raises(grpc.RpcError) as raised:
        list(peer.stub.StreamLog(request, timeout=0.1))
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


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
    assert failure(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", "request")


def test_fields_of_a_later_contract_are_passed_over(peer: Peer) -> None:
    job_id = peer.spawn("true")
    request = peer.pb.StatusRequest(job_id=job_id).SerializeToString() + b"\xfa\x3f\x05later"  # field 1023
    (answer,) = peer.call_raw("Status", request)
    assert peer.pb.StatusResponse.FromString(answer).job.id == job_id


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
