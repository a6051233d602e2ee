"""Taking a request off a stream, of whatever length and in however many parts a caller sends it.

- A request that says it is too long is not read: grpclib takes a message of any length into memory. What is not read
  is not acknowledged, so HTTP/2's flow control bounds what comes of it.
- A user who begins many long requests at once, and ends none, gets no room for more.
- A request that does not arrive in time is not waited for.
- A long request is decoded beside the event loop, which goes on for the others meanwhile; one at a time, because every
  further thread would take the interpreter from the loop for longer.
- A call has exactly one request, which is not compressed. Any other is answered with the status that gRPC defines for
  it (doc/statuscodes.md and doc/compression.md in https://github.com/grpc/grpc).
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from grpclib.server import Stream

from workerd.errors import FramingInvalid, LimitReached, Unsupported
from workerd.limits import Meter
from workerd.network.http2 import encoding_of
from workerd.network.request_buffer import RequestBuffer

_LONG_BYTES = 1 << 14
_HEAD_BYTES = 5  # gRPC over HTTP2, Length-Prefixed-Message
_SHOWN = 100

_decoder = ThreadPoolExecutor(1, "decoder")


def start_decoder() -> None:
    """Start the thread that decodes long requests.

    Where there is no memory left, starting a thread may wait for ever (threading.Thread.start), and the loop with it.
    """
    _decoder.submit(int).result()


async def receive(stream: Stream[Any, Any], meter: Meter, user_id: str) -> Any:
    """Return a stream's request.

    Args:
        meter: counts what is on its way.
        user_id: of the user who sends it.

    Raises:
        FramingInvalid: it is cut off, or says that it is compressed and not how.
        LimitReached: it is too long, takes too long to arrive, or too many of the user's are on their way.
        Unsupported: there is no request or more than one, or it is compressed.
        ValueError: it is no message.
    """
    deadline = asyncio.get_running_loop().time() + meter.limits.request_seconds
    head = await _read(stream, _HEAD_BYTES, meter, deadline)
    if not head:
        raise Unsupported("the call has no request, and this RPC takes one: send one message, an empty one perhaps")
    if head[0]:
        raise _compressed(head[0], encoding_of(stream._stream))
    size = int.from_bytes(head[1:])
    with meter.receiving(user_id, size):
        cast("RequestBuffer", stream._stream.buffer).widen(size)
        data = await _read(stream, size, meter, deadline)
        if await _read(stream, 1, meter, deadline):
            raise Unsupported("the call has more than one request, and this RPC takes one: make a call for each")
        if size <= _LONG_BYTES:
            return _decode(stream, data)
        return await asyncio.get_running_loop().run_in_executor(_decoder, _decode, stream, data)


def _compressed(flag: int, encoding: str) -> Exception:
    if flag != 1:
        return FramingInvalid(f"the request begins with the byte {flag}, and the flag there is 0 or 1")
    if encoding == "identity":
        return FramingInvalid("the request says that it is compressed, and grpc-encoding does not say how")
    return Unsupported(f"the request is compressed by {encoding[:_SHOWN]!r}, and only 'identity' is accepted")


async def _read(stream: Stream[Any, Any], size: int, meter: Meter, deadline: float) -> bytes:
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            return await stream._stream.recv_data(size)
    except TimeoutError as error:
        if not limit.expired():
            raise
        problem = f"the request has not arrived within {meter.limits.request_seconds:g} s"
        raise LimitReached("request-seconds", problem, "send it at once, and end the stream of the request") from error
    except AssertionError as error:  # what grpclib raises for less than that
        raise FramingInvalid("the request ends before the length that it says it has") from error


def _decode(stream: Stream[Any, Any], data: bytes) -> Any:
    return stream._codec.decode(data, stream._recv_type)
