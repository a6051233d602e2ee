"""Calls that no client of ours would make: odd headers, lying lengths, tricks in ids, names and metadata."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import SpawnRequest, StatusRequest, StreamLogRequest, WhoAmIRequest

from tests.daemon import Daemon
from tests.hostile.attacker import SERVICE, Answer, Connection, Headers, message, raw_frame, request_headers
from tests.hostile.witness import check_log

WHO = message(bytes(WhoAmIRequest()))
JOB = "00000000-0000-4000-8000-000000000000"
FAULTS = (Status.INTERNAL.value, Status.UNKNOWN.value)


@pytest.fixture(scope="module")
def connections(shared_daemon: Daemon) -> Iterator["Connections"]:
    """The attacker's connections, and a look into the daemon's log when all is over."""
    yield Connections(shared_daemon)
    check_log(shared_daemon.errors())


@dataclass
class Connections:
    """Opens a connection for each call."""

    daemon: Daemon

    def __post_init__(self) -> None:
        self.daemon.pki.issue_client("mallory")
        self._target = self.daemon.target("mallory")
        self._context = self._target.tls()

    def open(self) -> Connection:
        """Open a connection."""
        return Connection(self._target, self._context).open()

    def call(self, headers: Headers, data: bytes, *, end: bool = True) -> Answer:
        """Make one call on a connection of its own."""
        with self.open() as connection:
            return connection.call(headers, data, end=end)

    def ask(self, rpc: str, data: bytes) -> Answer:
        """Make an ordinary call with bytes of one's own as the message."""
        return self.call(request_headers(rpc), message(data))


def test_ordinary_call_is_answered(connections: Connections) -> None:
    """The counter-test of all others: what is odd in them is not how the attacker speaks."""
    answer = connections.call(request_headers("WhoAmI"), WHO)
    assert (answer.status, answer.ended) == (0, True)
    assert b"mallory" in answer.data


def altered(name: str, *values: str) -> Headers:
    """Make ordinary headers with other values for one."""
    return [pair for pair in request_headers("WhoAmI") if pair[0] != name] + [(name, value) for value in values]


MALFORMED = {
    "no path": altered(":path"),
    "two paths": [(":path", SERVICE + "Stop"), *request_headers("WhoAmI")],
    "no method": altered(":method"),
    "two methods": [(":method", "GET"), *request_headers("WhoAmI")],
    "a pseudo header that is none": [(":danger", "1"), *request_headers("WhoAmI")],
    "upper case": [*request_headers("WhoAmI"), ("X-Upper", "v")],
    "a line break in a value": [*request_headers("WhoAmI"), ("x-a", "b\r\nset-cookie: c")],
    "a NUL in a value": [*request_headers("WhoAmI"), ("x-a", "b\0c")],
    "an empty name": [*request_headers("WhoAmI"), ("", "v")],
    "a connection header": [*request_headers("WhoAmI"), ("transfer-encoding", "chunked")],
    "another te": altered("te", "gzip"),
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_headers_end_the_connection(connections: Connections, headers: Headers) -> None:
    ordered = sorted(headers, key=lambda pair: not pair[0].startswith(":"))
    answer = connections.call(ordered, WHO)
    assert answer.closed
    assert not answer.headers


REFUSED_BY_HTTP = {
    "GET": (sorted(altered(":method", "GET")), "405"),
    "no content type": (altered("content-type"), "415"),
    "JSON": (altered("content-type", "application/json"), "415"),
    "JSON in gRPC": (altered("content-type", "application/grpc+json"), "415"),
    "no te": (altered("te"), "400"),
}


@pytest.mark.parametrize(("headers", "status"), REFUSED_BY_HTTP.values(), ids=REFUSED_BY_HTTP.keys())
def test_what_is_no_grpc_is_told_so_by_http(connections: Connections, headers: Headers, status: str) -> None:
    answer = connections.call(headers, WHO)
    assert answer.headers[":status"] == status


@pytest.mark.parametrize(
    "path",
    ["/", "", "*", SERVICE, SERVICE + "whoami", SERVICE + "WhoAmI/", SERVICE + "../WorkerService/WhoAmI", "/" * 999],
)
def test_path_that_nobody_serves_is_unimplemented(connections: Connections, path: str) -> None:
    answer = connections.call(sorted(altered(":path", path)), WHO)
    assert answer.closed if not path else answer.status == Status.UNIMPLEMENTED.value


def test_path_of_any_length_is_answered_in_short(connections: Connections) -> None:
    """The answer goes into a header, and the longer that is, the longer everybody waits."""
    answer = connections.call(sorted(altered(":path", SERVICE + "%" * 15_000)), WHO)
    assert answer.status == Status.UNIMPLEMENTED.value
    assert len(answer.headers["grpc-message"]) < 1000


ODD_METADATA = {
    "time without unit": ("grpc-timeout", "1"),
    "negative time": ("grpc-timeout", "-1S"),
    "time of many digits": ("grpc-timeout", "9" * 400 + "m"),
    "time of nine digits": ("grpc-timeout", "123456789n"),
    "no time": ("grpc-timeout", ""),
    "time in Arabic digits": ("grpc-timeout", "\u0661S"),
    "binary that is none": ("x-data-bin", "A"),
    "binary with padding amiss": ("x-data-bin", "====A"),
    "binary that is not ASCII": ("x-data-bin", "caf\u00e9"),
    "an empty username": ("workerd-username", ""),
    "a username that is not ASCII": ("workerd-username", "\u0430crimon"),
    "a long username": ("workerd-username", "a" * 5000),
}


@pytest.mark.parametrize("pair", ODD_METADATA.values(), ids=ODD_METADATA.keys())
def test_odd_metadata_is_an_invalid_argument(connections: Connections, pair: tuple[str, str]) -> None:
    answer = connections.call(request_headers("WhoAmI", pair), WHO)
    assert answer.status == Status.INVALID_ARGUMENT.value


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "{}", "%00", "' OR 1=1 --", '"; permit(principal,action,resource);']
)
def test_username_that_is_garbage_is_refused(connections: Connections, name: str) -> None:
    answer = connections.call(request_headers("WhoAmI", ("workerd-username", name)), WHO)
    assert answer.status == Status.PERMISSION_DENIED.value


def test_call_whose_time_is_over_before_it_is_looked_at_is_told_so(connections: Connections) -> None:
    for limit in ("0n", "1n", "0S"):
        answer = connections.call(request_headers("WhoAmI", ("grpc-timeout", limit)), WHO)
        assert answer.status == Status.DEADLINE_EXCEEDED.value


def test_request_that_does_not_come_is_waited_for_no_longer_than_the_call_allows(connections: Connections) -> None:
    answer = connections.call(request_headers("WhoAmI", ("grpc-timeout", "50m")), b"", end=False)
    assert answer.status == Status.DEADLINE_EXCEEDED.value


LYING = {
    "four gigabytes": b"\0\xff\xff\xff\xff" + b"x" * 100,
    "a field cut off": message(b"\x0a\x7f"),
    "an unfinished number": message(b"\xff" * 9),
    "a field of number 0": message(b"\x00\x00"),
    "a group": message(b"\x0b\x0c"),
}


@pytest.mark.parametrize("data", LYING.values(), ids=LYING.keys())
def test_message_that_is_none_is_refused(connections: Connections, data: bytes) -> None:
    answer = connections.call(request_headers("WhoAmI"), data)
    assert answer.status in (Status.INVALID_ARGUMENT.value, Status.RESOURCE_EXHAUSTED.value)


def test_message_in_pieces_with_empty_ones_between_is_read(connections: Connections) -> None:
    """An empty DATA frame is none of the signs that a request has ended (RFC 9113 §6.1)."""
    with connections.open() as connection:
        stream_id = connection.take_stream()
        empty = raw_frame(0, 0, stream_id, b"")
        request = message(bytes(StatusRequest(job_id=JOB)))
        pieces = empty.join(raw_frame(0, 0, stream_id, request[at : at + 1]) for at in range(len(request)))
        connection.send(
            connection.headers(stream_id, request_headers("Status")) + pieces + raw_frame(0, 1, stream_id, b"")
        )
        assert connection.answer(stream_id).status == Status.NOT_FOUND.value


def test_more_messages_than_one_are_refused(connections: Connections) -> None:
    assert connections.call(request_headers("WhoAmI"), WHO * 50).status == Status.UNIMPLEMENTED.value


def test_messages_within_messages_are_read_to_the_depth_that_the_contract_has(connections: Connections) -> None:
    nested = b""
    for _ in range(20_000):
        nested = b"\x3a" + _varint(len(nested)) + nested
        if len(nested) > 60_000:
            break
    assert connections.ask("Spawn", nested).status == Status.INVALID_ARGUMENT.value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


NO_IDS = [
    *("", ".", "..", "../..", "jobs/..", "/etc/passwd", f"../jobs/{JOB}", f"{JOB}/", f"{JOB}/../x", f"{{{JOB}}}"),
    *(JOB.replace("-", ""), f"urn:uuid:{JOB}", f"{JOB}\n", f"{JOB}\0", f" {JOB}", "a" * 60_000),
    *(JOB.replace("0", "\uff10"), JOB.replace("-", "\u2010")),
]


@pytest.mark.parametrize("rpc", ["Status", "Stop", "Remove", "StreamLog"])
def test_id_that_is_none_leads_nowhere(connections: Connections, rpc: str) -> None:
    for job_id in NO_IDS:
        answer = connections.ask(rpc, bytes(StatusRequest(job_id=job_id)))
        assert answer.status == Status.INVALID_ARGUMENT.value, job_id[:50]


def test_id_in_upper_case_is_the_same_job_s(connections: Connections) -> None:
    assert connections.ask("Status", bytes(StatusRequest(job_id="ABCDEF00-0000-4000-8000-000000000000"))).status == 5


NO_SPAWNS = {
    "no program": SpawnRequest(),
    "a relative program": SpawnRequest(program="../bin/sh"),
    "NUL in the program": SpawnRequest(program="/bin/sh\0"),
    "NUL in an argument": SpawnRequest(program="true", args=["a\0b"]),
    "NUL in a name": SpawnRequest(program="true", envs={"A\0": "b"}),
    "NUL in a value": SpawnRequest(program="true", envs={"A": "b\0"}),
    "equals in a name": SpawnRequest(program="true", envs={"A=B": "c"}),
    "NUL in the folder": SpawnRequest(program="true", working_directory="/tmp\0"),
    "a relative folder": SpawnRequest(program="true", working_directory="../.."),
    "a long label": SpawnRequest(program="true", name="\u00e9" * 129),
    "a long key": SpawnRequest(program="true", request_key="k" * 257),
    "a long program": SpawnRequest(program="/" + "a" * 5000),
    "a small log": SpawnRequest(program="true", max_log_bytes=1),
}


@pytest.mark.parametrize("request_", NO_SPAWNS.values(), ids=NO_SPAWNS.keys())
def test_spawn_that_cannot_be_is_refused(connections: Connections, request_: SpawnRequest) -> None:
    assert connections.ask("Spawn", bytes(request_)).status == Status.INVALID_ARGUMENT.value


ODD_SPAWNS = {
    "line breaks and escapes everywhere": SpawnRequest(
        program="true", args=["\n", "\x1b[2J", "\r\n"], envs={"A\nB": "\n"}, name="\n\x1b]0;title\x07", request_key="\n"
    ),
    "a label that is a path": SpawnRequest(program="true", name="../../etc", request_key="../../etc/passwd"),
    "the largest log": SpawnRequest(program="true", max_log_bytes=2**64 - 1),
}


@pytest.mark.parametrize("request_", ODD_SPAWNS.values(), ids=ODD_SPAWNS.keys())
def test_odd_spawn_runs_or_is_refused(connections: Connections, request_: SpawnRequest) -> None:
    answer = connections.ask("Spawn", bytes(request_))
    assert answer.status in (Status.OK.value, Status.INVALID_ARGUMENT.value)
    if answer.status == Status.OK.value:
        job_id = answer.data[7:].decode()
        assert connections.ask("Status", bytes(StatusRequest(job_id=job_id))).status == Status.OK.value
        log = connections.ask("StreamLog", bytes(StreamLogRequest(job_id=job_id, follow=True)))
        assert log.status == Status.OK.value
    assert {path.name for path in connections.daemon.state.parent.iterdir()} == {"state"}


@pytest.mark.parametrize("field", [1, 2, 4, 5, 6, 9])
def test_text_that_is_not_utf_8_is_refused(connections: Connections, field: int) -> None:
    for text in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"a\xe2\x82"):
        data = bytes([field << 3 | 2, len(text)]) + text
        assert connections.ask("Spawn", data).status == Status.INVALID_ARGUMENT.value


def test_seconds_beyond_all_bounds_are_refused_or_kept(connections: Connections) -> None:
    for seconds in (2**63 - 1, 1 << 62, 315_576_000_001, 315_576_000_000, 10**9, 2**64 - 1):
        duration = b"\x08" + _varint(seconds)
        answer = connections.ask("Spawn", b"\x0a\x04true" + b"\x3a" + bytes([len(duration)]) + duration)
        assert answer.status in (Status.OK.value, Status.INVALID_ARGUMENT.value)
        if answer.status == Status.OK.value:
            log = connections.ask("StreamLog", bytes(StreamLogRequest(job_id=answer.data[7:].decode(), follow=True)))
            assert log.status == Status.OK.value
            assert not list(connections.daemon.state.glob("jobs/*/fault"))
