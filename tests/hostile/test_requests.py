"""Requests of any bytes and of any values: each call is answered, and never with a fault of the daemon's."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from betterproto2.grpclib import ServiceStub
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from worker_api.worker.v1 import WorkerServiceBase

from tests.daemon import Daemon
from tests.hostile.witness import check_log
from tests.protobuf import block, varint
from workerctl.transport import WorkerChannel

_ANSWER_SECONDS = 20
_EXAMPLES = 25
METHODS = WorkerServiceBase().__mapping__()
TEXTS = st.one_of(
    st.text(max_size=300),
    st.sampled_from(["", "..", "true", "/bin/true", "\0", "\n", "spawn", "localhost", "0.0", "99999999999999999999.x"]),
    st.uuids().map(str),
)


NUMBERS = st.one_of(st.integers(-3, 300), st.integers(-(2**63), 2**64 - 1)).map(varint)
DURATIONS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: b"\x08" + pair[0] + b"\x10" + pair[1])


def field_bytes(number: int, proto_type: str) -> st.SearchStrategy[bytes]:
    """Make a field of a message with any value, or now and then with what cannot be in it."""
    match proto_type:
        case "string":
            return TEXTS.map(lambda text: block(number, text.encode("utf-8", "surrogatepass")))
        case "bytes":
            return st.binary(max_size=300).map(lambda data: block(number, data))
        case "message":
            return DURATIONS.map(lambda data: block(number, data))
        case "map":
            pairs = st.tuples(TEXTS, TEXTS)
            return pairs.map(lambda pair: block(number, block(1, pair[0].encode()) + block(2, pair[1].encode())))
        case _:
            return NUMBERS.map(lambda data: varint(number << 3) + data)


def requests(message_type: Any) -> st.SearchStrategy[bytes]:
    """Make requests of a type: fields in any order and number, and now and then bytes at random among them."""
    known = message_type._betterproto
    fields = [
        field_bytes(number, known.meta_by_field_name[name].proto_type)
        for number, name in known.field_name_by_number.items()
    ]
    whole = st.lists(st.one_of(*fields), max_size=12) if fields else st.just([])
    return st.one_of(whole.map(b"".join), whole.map(b"".join), st.binary(max_size=200))


class Raw(bytes):
    """A request or response that is passed as bytes."""

    def SerializeToString(self) -> bytes:  # noqa: N802
        """Give the bytes."""
        return bytes(self)

    @classmethod
    def FromString(cls, data: bytes) -> "Raw":  # noqa: N802
        """Take the bytes."""
        return cls(data)


class Caller:
    """Calls a daemon, each time over a connection of its own."""

    def __init__(self, daemon: Daemon, runner: asyncio.Runner) -> None:
        self._target = daemon.target()
        self._runner = runner

    def call(self, path: str, data: bytes) -> Status:
        """Make a call, and tell how it ended."""
        return self._runner.run(self._call(path, Raw(data)))

    async def _call(self, path: str, request: Any) -> Status:
        channel = WorkerChannel(*self._target.resolve(), self._target.tls())
        stub: Any = ServiceStub(channel)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                if METHODS[path].cardinality.server_streaming:
                    async for _ in stub._unary_stream(path, request, Raw):
                        pass
                else:
                    await stub._unary_unary(path, request, Raw)
        except GRPCError as error:
            return error.status
        finally:
            channel.close()
            if channel._last is not None:
                await channel._last.lost.wait()
        return Status.OK


@pytest.fixture(scope="module")
def caller(shared_daemon: Daemon) -> Iterator[Caller]:
    """Somebody who calls the module's daemon."""
    with asyncio.Runner() as runner:
        yield Caller(shared_daemon, runner)
    check_log(shared_daemon.errors())


@pytest.fixture
def run_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run, beside hypothesis's `seed`."""
    return int(request.config.option.seed)


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.rpartition("/")[2])
def test_request_of_any_bytes_is_answered_without_a_fault(
    caller: Caller, request: pytest.FixtureRequest, path: str
) -> None:
    @seed(request.config.option.seed)
    @settings(max_examples=_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(requests(METHODS[path].request_type))
    def check(data: bytes) -> None:
        assert caller.call(path, data) not in (Status.INTERNAL, Status.UNKNOWN), data

    check()
