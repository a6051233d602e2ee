"""Taking a request off a stream, of whatever length and in however many parts a caller sends it.

- A request that says it is too long is not read: grpclib takes a message of any length into memory. What is not read
  is not acknowledged, so HTTP/2's flow control bounds what comes of it.
- A user who begins many long requests at once, and ends none, gets no room for more.
- A long request is decoded beside the event loop, which goes on for the others meanwhile; one at a time, because every
  further thread would take the interpreter from the loop for longer.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from workerd.limits import Meter
from workerd.network.request_buffer import RequestBuffer

_LONG_BYTES = 1 << 14
_HEAD_BYTES = 5  # gRPC over HTTP2, Length-Prefixed-Message

_decoder = ThreadPoolExecutor(1, "decoder")


def start_decoder() -> None:
    """Start the thread that decodes long requests.

    Where there is no memory left, starting a thread may wait for ever (threading.Thread.start), and the loop with it.
    """
    _decoder.submit(int).result()


async def receive(stream: Stream[Any, Any], meter: Meter, user_id: str) -> Any:
    """Give a stream's request; None when it ends without one.

    Args:
        meter: counts what is on its way.
        user_id: of the user who sends it.

    Raises:
        ValueError: it is compressed, cut off, or no message.
        LimitReached: it is too long, or too many of the user's are on their way.
    """
    head = await _read(stream, _HEAD_BYTES)
    if not head:
        return None
    if head[0]:
        raise ValueError("it is compressed, which this daemon does not take")
    size = int.from_bytes(head[1:])
    with meter.receiving(user_id, size):
        cast("RequestBuffer", stream._stream.buffer).widen(size)
        data = await _read(stream, size)
        if await _read(stream, 1):
            raise GRPCError(Status.UNIMPLEMENTED, "the call sends more than the one request that this RPC takes")
        if size <= _LONG_BYTES:
            return _decode(stream, data)
        return await asyncio.get_running_loop().run_in_executor(_decoder, _decode, stream, data)


async def _read(stream: Stream[Any, Any], size: int) -> bytes:
    try:
        return await stream._stream.recv_data(size)
    except AssertionError as error:  # what grpclib raises for less than that
        raise ValueError("it ends before its length") from error


def _decode(stream: Stream[Any, Any], data: bytes) -> Any:
    return stream._codec.decode(data, stream._recv_type)
