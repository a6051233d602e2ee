"""A client that costs next to nothing: it makes the same gRPC call again and again and compares the answers.

A real client takes as much of the processors as the daemon that is measured. This one encodes its request once, and
reads frames (RFC 9113) without decoding what is in them.
"""

import asyncio
import ssl
import struct
from typing import cast

from hpack import Encoder

from benchmarks.check import Damaged, require

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_FRAME_HEADER_BYTES = 9
_MOST_WINDOW = 2**31 - 1 - 65_535


class Connection(asyncio.Protocol):
    """A connection on which one call is made over and over; made by `connect`."""

    def __init__(self, authority: str, path: str, message: bytes) -> None:
        encoder = Encoder()
        headers = [
            *((":method", "POST"), (":scheme", "https"), (":authority", authority), (":path", path)),
            *(("te", "trailers"), ("content-type", "application/grpc")),  # codespell:ignore te
        ]
        self._first_headers = encoder.encode(headers)
        self._headers = encoder.encode(headers)  # all in the dynamic table by now, and the same for ever
        self._message = struct.pack(">BI", 0, len(message)) + message
        self._next_stream = 1
        self._received = bytearray()
        self._expected: bytes | None = None
        self._answered: set[int] = set()
        self._counting = False
        self._answers = 0
        self._open = 0
        self._done = asyncio.get_running_loop().create_future()

    async def call(self, in_flight: int, seconds: float) -> int:
        """Make calls, so many at a time, and wait for the answers to all of them.

        Returns:
            How many answers came within the seconds.

        Raises:
            Damaged: an answer differs from the first, or there is none.
        """
        self._counting = True
        self._transport.write(b"".join(self._request() for _ in range(in_flight)))
        asyncio.get_running_loop().call_later(seconds, self._stop)
        try:
            await self._done
        finally:
            self._transport.close()
        return self._answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection's window for all that may come."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's of TLS is one, without being its subclass
        window = _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _MOST_WINDOW))
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, 0) + window)

    def data_received(self, data: bytes) -> None:
        """Take frames apart, and answer each end of a stream with a new one."""
        self._received += data
        replies = []
        position = 0
        while len(self._received) - position >= _FRAME_HEADER_BYTES:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", self._received, position)
            end = position + _FRAME_HEADER_BYTES + (high << 16 | low)
            if end > len(self._received):
                break
            try:
                replies.append(self._frame_received(kind, flags, stream, position + _FRAME_HEADER_BYTES, end))
            except Damaged as error:
                self._fail(error)
                return
            position = end
        del self._received[:position]
        self._transport.write(b"".join(replies))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail if there are answers to come."""
        self._fail(error or Damaged("the connection was closed"))

    def _frame_received(self, kind: int, flags: int, stream: int, start: int, end: int) -> bytes:
        if kind in (_RST_STREAM, _GOAWAY):
            raise Damaged(f"the daemon broke off, with a frame of type {kind}")
        if kind == _SETTINGS and not flags & _ACK:
            return _frame(_SETTINGS, _ACK, 0)
        if kind == _DATA and end > start:
            answer = bytes(memoryview(self._received)[start:end])
            self._expected = self._expected or answer
            require(answer == self._expected, "two answers to the same call differ")
            self._answered.add(stream)
        if kind not in (_DATA, _HEADERS) or not flags & _END_STREAM:
            return b""
        require(stream in self._answered, "a call ended without an answer")
        self._answered.remove(stream)
        self._open -= 1
        if self._counting:
            self._answers += 1
            return self._request()
        if self._open == 0 and not self._done.done():
            self._done.set_result(None)
        return b""

    def _request(self) -> bytes:
        stream = self._next_stream
        headers = self._first_headers if stream == 1 else self._headers
        self._next_stream += 2
        self._open += 1
        return _frame(_HEADERS, _END_HEADERS, stream, headers) + _frame(_DATA, _END_STREAM, stream, self._message)

    def _stop(self) -> None:
        self._counting = False

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BHBBI", len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


async def connect(host: str, port: int, tls: ssl.SSLContext, path: str, message: bytes) -> Connection:
    """Connect.

    Args:
        path: of the call, such as `/worker.v1.WorkerService/Status`.
        message: the encoded request.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(host, path, message), host, port, ssl=tls)
    return connection
