"""Taking a request off a stream, of whatever length and in however many parts a caller sends it.

- A request that says it is too long is not read: grpclib takes a message of any length into memory. What is not read
  is not acknowledged, so HTTP/2's flow control bounds what comes of it.
- A caller who begins many long requests at once, and ends none, gets no room for more.
- A long request is decoded beside the event loop, which goes on for the others meanwhile; one at a time, because every
  further thread would take the interpreter from the loop for longer.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import Connection
from grpclib.server import Stream
from worker_api.worker.v1 import ErrorDetail, ErrorReason

# Above all arguments and variables that the kernel takes together, three quarters of 8 MiB (execve(2)).
MAX_REQUEST_BYTES = 1 << 23
_MAX_BYTES_AT_ONCE = 8 * MAX_REQUEST_BYTES
_LONG_BYTES = 1 << 14
_HEAD_BYTES = 5  # gRPC over HTTP2, Length-Prefixed-Message

_held: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
_decoder = ThreadPoolExecutor(1, "decoder")


async def receive(stream: Stream[Any, Any]) -> Any:
    """Give a stream's request; None when it ends without one.

    Raises:
        ValueError: it is too long, compressed, cut off, or no message.
        GRPCError: too many of the connection's requests are long.
    """
    head = await _read(stream, _HEAD_BYTES)
    if not head:
        return None
    if head[0]:
        raise ValueError("it is compressed, which this daemon does not take")
    size = int.from_bytes(head[1:])
    if size > MAX_REQUEST_BYTES:
        raise ValueError(f"its {size} bytes are more than {MAX_REQUEST_BYTES}")
    if size <= _LONG_BYTES:
        return _decode(stream, await _read(stream, size))
    connection = stream._stream.connection
    if (held := _held.get(connection, 0)) + size > _MAX_BYTES_AT_ONCE:
        detail = ErrorDetail(reason=ErrorReason.LIMIT_REACHED, subject="request")
        sentence = f"the requests under way on this connection have {held} bytes: wait for one of them"
        raise GRPCError(Status.RESOURCE_EXHAUSTED, sentence, [detail])
    _held[connection] = held + size
    try:
        data = await _read(stream, size)
        return await asyncio.get_running_loop().run_in_executor(_decoder, _decode, stream, data)
    finally:
        _held[connection] -= size


async def _read(stream: Stream[Any, Any], size: int) -> bytes:
    try:
        return await stream._stream.recv_data(size)
    except AssertionError as error:  # what grpclib raises for less than that
        raise ValueError("it ends before its length") from error


def _decode(stream: Stream[Any, Any], data: bytes) -> Any:
    return stream._codec.decode(data, stream._recv_type)
