"""The received part of a request that has not been read yet, within limits.

In HTTP/2 the receiver decides how much may be sent to it (RFC 9113 §5.2). A stream has a small window until the length
of its request is known and permitted. All streams of a connection share one window, which bounds what the daemon holds
for the connection.
"""

import asyncio
import weakref

from grpclib.protocol import Stream

STREAM_WINDOW_BYTES = (1 << 16) - 1  # HTTP/2's initial value, which a client uses until it has received another
CONNECTION_WINDOW_BYTES = 1 << 18  # above a spawn with as many arguments as may be, unless that is set
_HEAD_BYTES = 5  # gRPC over HTTP2, Length-Prefixed-Message


class RequestBuffer:
    """Replaces `grpclib.protocol.Buffer`, which holds several objects for each DATA frame, where this holds bytes.

    For a call with one request it keeps that request and one byte more, which shows that the client sends too much. The
    rest is dropped, and acknowledged only when the stream is closed.

    Args:
        stream: of the call.
        is_single: whether the call has exactly one request. Otherwise nothing is dropped.
    """

    def __init__(self, stream: Stream, *, is_single: bool) -> None:
        self._stream = weakref.proxy(stream)  # which holds this: a cycle would stay until the garbage collector comes
        self._is_single = is_single
        self._head = bytearray()
        self._most_bytes: int | None = None  # of the whole stream that are kept, once the request's length is known
        self._kept_bytes = 0
        self._dropped_bytes = 0
        self._data = bytearray()
        self._has_ended = False
        self._changed = asyncio.Event()

    def add(self, data: bytes, ack_size: int) -> None:
        """Take a DATA frame.

        Args:
            data: its content.
            ack_size: the bytes that it takes of the windows, padding included.
        """
        self._ack(ack_size - len(data))
        kept = data[: self._room(data)]
        self._kept_bytes += len(kept)
        self._dropped_bytes += len(data) - len(kept)
        self._data += kept
        self._changed.set()

    def eof(self) -> None:
        """Note the end of the stream."""
        self._has_ended = True
        self._changed.set()

    async def read(self, size: int) -> bytes:
        """Wait for so many bytes, and return them; none at the end of the stream.

        Raises:
            AssertionError: the stream ends before that. grpclib raises the same.
        """
        read = bytearray()
        while len(read) < size:
            if piece := self._data[: size - len(read)]:
                del self._data[: len(piece)]
                read += piece
                self._ack(len(piece))
            elif self._has_ended:
                break
            else:
                self._changed.clear()
                await self._changed.wait()
        if read and len(read) < size:
            raise AssertionError(f"the stream ended {size - len(read)} bytes too early")
        return bytes(read)

    def unacked_size(self) -> int:
        """Return how many bytes have not been acknowledged, for grpclib, which does that when it closes the stream."""
        return len(self._data) + self._dropped_bytes

    def widen(self, size: int) -> None:
        """Widen the stream's window for a request whose length is permitted, up to the window of the connection.

        Args:
            size: the request's length in bytes.
        """
        more = min(size, CONNECTION_WINDOW_BYTES) - STREAM_WINDOW_BYTES
        if more > 0 and not self._has_ended and self._stream.closable:
            self._stream._h2_connection.increment_flow_control_window(more, self._stream.id)
            self._stream.connection.flush()

    def _room(self, data: bytes) -> int:
        """Return how many of the bytes are kept."""
        if not self._is_single:
            return len(data)
        if self._most_bytes is None:
            self._head += data[: _HEAD_BYTES - len(self._head)]
            if len(self._head) < _HEAD_BYTES:
                return len(data)
            self._most_bytes = _HEAD_BYTES + int.from_bytes(self._head[1:]) + 1
        return min(len(data), self._most_bytes - self._kept_bytes)

    def _ack(self, size: int) -> None:
        if self._stream.id is not None:
            self._stream.connection.ack(self._stream.id, size)
