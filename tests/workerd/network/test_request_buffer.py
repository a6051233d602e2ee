"""What is kept of what a call sends, over real connections, without TLS."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

from grpclib.client import Channel
from grpclib.const import Cardinality, Handler
from grpclib.protocol import H2Protocol
from grpclib.protocol import Stream as RawStream
from grpclib.server import Server, Stream
from worker_api.worker.v1 import StatusRequest

from workerd.limits import DEFAULT_LIMITS, Meter
from workerd.network.http2 import Calls, StrictProtocol
from workerd.network.request_buffer import RequestBuffer
from workerd.notices import Notices

PATH = "/tests.v1.EchoService/Join"
MANY, LONG = 200, "x" * 1000
SIZE = 100_000
LIMIT_SECONDS = 20


class _Server(Server):
    """The daemon's connections and calls, with one RPC."""

    def __init__(self, cardinality: Cardinality, serve: Callable[[Stream[Any, Any]], Awaitable[None]]) -> None:
        super().__init__([])
        self._mapping = {PATH: Handler(serve, cardinality, StatusRequest, StatusRequest)}

    def _protocol_factory(self) -> H2Protocol:
        calls = Calls(
            self._mapping, self._codec, None, self.__dispatch__, meter=Meter(DEFAULT_LIMITS), notices=Notices()
        )
        return StrictProtocol(calls, self._config)


@contextlib.asynccontextmanager
async def connected(
    cardinality: Cardinality, serve: Callable[[Stream[Any, Any]], Awaitable[None]]
) -> AsyncIterator[Channel]:
    """Serve an RPC, and connect to it."""
    server = _Server(cardinality, serve)
    await server.start("127.0.0.1", 0)
    assert isinstance(server._server, asyncio.Server)
    channel = Channel("127.0.0.1", server._server.sockets[0].getsockname()[1])
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            yield channel
    finally:
        channel.close()
        server.close()
        await server.wait_closed()


async def test_a_call_with_a_stream_of_requests_sends_any_number() -> None:
    async def join(stream: Stream[Any, Any]) -> None:
        count = 0
        async for request in stream:
            assert request.job_id == LONG
            count += 1
        await stream.send_message(StatusRequest(job_id=str(count)))

    async with (
        connected(Cardinality.STREAM_UNARY, join) as channel,
        channel.request(PATH, Cardinality.STREAM_UNARY, StatusRequest, StatusRequest) as stream,
    ):
        for _ in range(MANY):
            await stream.send_message(StatusRequest(job_id=LONG))
        await stream.end()
        response = await stream.recv_message()
    assert response is not None and response.job_id == str(MANY)


async def test_of_a_call_with_one_request_one_byte_more_is_kept() -> None:
    kept: list[bytes] = []

    async def read(stream: Stream[Any, Any]) -> None:
        raw = stream._stream
        await raw.recv_data(5 + len(bytes(StatusRequest(job_id=LONG))))
        kept.append(await raw.recv_data(1))
        while raw.data_received < 2 * len(LONG):
            await asyncio.sleep(0.01)
        kept.append(bytes(raw.buffer._data))  # type: ignore[attr-defined]
        assert isinstance(raw.buffer, RequestBuffer)
        await stream.send_message(StatusRequest())

    async with (
        connected(Cardinality.UNARY_UNARY, read) as channel,
        channel.request(PATH, Cardinality.STREAM_UNARY, StatusRequest, StatusRequest) as stream,
    ):
        for _ in range(2):
            await stream.send_message(StatusRequest(job_id=LONG))
        await stream.end()
        await stream.recv_message()
    assert kept == [b"\0", b""]


async def test_a_request_in_frames_of_one_byte_takes_no_more_memory_than_its_bytes() -> None:
    stream = RawStream(*[cast("Any", None)] * 3)  # which the buffer does not keep alive
    buffer = RequestBuffer(stream, is_single=True)
    frames = [b"\0", *(bytes([each]) for each in SIZE.to_bytes(4)), *([b"x"] * SIZE)]
    tracemalloc.start()
    try:
        for frame in frames:
            buffer.add(frame, len(frame))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * SIZE
    buffer.eof()
    assert await buffer.read(5) == b"\0" + SIZE.to_bytes(4)
    assert await buffer.read(SIZE) == b"x" * SIZE
    assert await buffer.read(1) == b""
