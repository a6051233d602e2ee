"""An attacker with a certificate: real TLS, and HTTP/2 frames of which every byte is its own.

It is synchronous: it runs in a thread, beside whoever is not to be disturbed, in whose loop nothing of it waits.
"""

import socket
import ssl
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from hpack import Decoder, Encoder
from hyperframe.frame import DataFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame

from workerctl.target import Target

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 §3.4
WAIT_SECONDS = 30.0
SERVICE = "/worker.v1.WorkerService/"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK = 1, 1
_INITIAL_WINDOW_BYTES, _PIECE_BYTES = 65_535, 16_384  # RFC 9113 §6.9.2, §4.2
_HEAD_BYTES = 9
_GONE = (ConnectionError, ssl.SSLError)

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Received:
    """A frame that came (RFC 9113 §4.1)."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


@dataclass(slots=True)
class Answer:
    """What became of a call.

    Attributes:
        headers: those of all header blocks together.
        reset: the code of the RST_STREAM that ended it, if one did.
        closed: whether the daemon closed the connection instead.
    """

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None
    closed: bool = False

    @property
    def status(self) -> int | None:
        """The status of gRPC, if one came."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None


def request_headers(rpc: str, *more: tuple[str, str]) -> Headers:
    """Make the headers of an ordinary call (gRPC over HTTP2, Requests)."""
    return [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", SERVICE + rpc),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]


def message(data: bytes) -> bytes:
    """Put the length before a message, as gRPC has it."""
    return b"\0" + len(data).to_bytes(4) + data


class Connection:
    """One connection of the attacker's.

    Args:
        receive_bytes: how much the kernel keeps of what the attacker does not read; None for as much as usual.
    """

    def __init__(self, target: Target, context: ssl.SSLContext, receive_bytes: int | None = None) -> None:
        plain = reach(target, receive_bytes)
        try:
            self.socket = context.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._buffer = bytearray()
        self._next_stream = 1
        self._windows: defaultdict[int, int] = defaultdict(lambda: _INITIAL_WINDOW_BYTES)
        self._reset: set[int] = set()
        self._kept: deque[Received] = deque()  # what came while there was no room to send

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def open(self, settings: dict[int, int] | None = None) -> Self:
        """Say what a connection begins with, and agree to what the daemon says: until then its windows are small."""
        self.send(PREFACE + SettingsFrame(settings=settings or {}).serialize())
        self.is_alive(b"attacker")
        return self

    def send(self, data: bytes) -> bool:
        """Send bytes.

        Returns:
            Whether the daemon still took them; False when it has closed.
        """
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise
        except (*_GONE, OSError):
            return False
        return True

    def take_stream(self) -> int:
        """Give the number of a new stream."""
        self._next_stream += 2
        return self._next_stream - 2

    def headers(self, stream_id: int, headers: Headers, *flags: str) -> bytes:
        """Make a HEADERS frame."""
        frame = HeadersFrame(stream_id, self._encoder.encode(headers), flags=["END_HEADERS", *flags])
        return frame.serialize()

    def request(self, rpc: str, data: bytes, *, end: bool = True) -> bytes:
        """Make the frames of an ordinary call on a new stream."""
        stream_id = self.take_stream()
        return self.headers(stream_id, request_headers(rpc)) + data_frame(stream_id, data, end=end)

    def call(self, headers: Headers, data: bytes, *, end: bool = True) -> Answer:
        """Make a call, with headers and data of one's own, and wait for what becomes of it."""
        stream_id = self.take_stream()
        if not (self.send(self.headers(stream_id, headers)) and self.upload(stream_id, data, end=end)):
            return Answer(closed=True)
        return self.answer(stream_id)

    def upload(self, stream_id: int, data: bytes, *, end: bool = True) -> bool:
        """Send a request, as much at a time as the daemon's windows let through, or until it resets the stream.

        Returns:
            Whether the connection is still there.
        """
        left = memoryview(data)  # whose rest is not copied for each piece
        while True:
            size = min(len(left), self._windows[0], self._windows[stream_id], _PIECE_BYTES)
            if size or not left:
                for window in (0, stream_id):
                    self._windows[window] -= size
                piece, left = bytes(left[:size]), left[size:]
                if not self.send(data_frame(stream_id, piece, end=end and not left)):
                    return False
                if not left:
                    return True
            elif stream_id in self._reset:
                return True
            elif (frame := self._next_frame()) is None:
                return False
            else:
                self._kept.append(frame)

    def answer(self, stream_id: int) -> Answer:
        """Wait for what becomes of a call."""
        answer = Answer()
        for frame in self.received():
            if frame.kind == HEADERS:  # of any stream: the decoder must see them all
                headers = self._decoder.decode(frame.payload)
                if frame.stream_id == stream_id:
                    answer.headers.update({_text(name): _text(value) for name, value in headers})
            if frame.stream_id != stream_id:
                continue
            if frame.kind == DATA:
                answer.data += frame.payload
            if frame.kind == RST_STREAM:
                answer.reset = int.from_bytes(frame.payload)
                return answer
            if frame.kind in (DATA, HEADERS) and frame.flags & _END_STREAM:
                answer.ended = True
                return answer
        answer.closed = True
        return answer

    def is_alive(self, mark: bytes) -> bool:
        """Send a PING and wait until it is answered, which everything before it is taken by then; False when closed.

        Args:
            mark: eight bytes, to tell the answer from others.
        """
        if not self.send(PING_HEAD + mark):
            return False
        return any(frame.kind == PING and frame.flags & _ACK and frame.payload == mark for frame in self.received())

    def wait_closed(self) -> None:
        """Read until the daemon closes."""
        for _ in self.received():
            pass

    def received(self) -> Iterator[Received]:
        """Give the frames that come until the daemon closes.

        Raises:
            TimeoutError: for a long time nothing came, and the daemon has not closed.
        """
        limit = time.monotonic() + WAIT_SECONDS
        while (frame := self._kept.popleft() if self._kept else self._next_frame()) is not None:
            yield frame
            if time.monotonic() > limit:
                raise TimeoutError("what is waited for does not come, though other things do")

    def _next_frame(self) -> Received | None:
        """Wait for a frame; return None when the daemon closes."""
        while (frame := self._cut_frame()) is None:
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                raise
            except (*_GONE, OSError):
                return None
            if not data:
                return None
            self._buffer += data
        if frame.kind == SETTINGS and not frame.flags & _ACK:
            self.send(raw_frame(SETTINGS, _ACK, 0, b""))
        if frame.kind == RST_STREAM:
            self._reset.add(frame.stream_id)
        if frame.kind == WINDOW_UPDATE:
            self._windows[frame.stream_id] += int.from_bytes(frame.payload)
        return frame

    def _cut_frame(self) -> Received | None:
        if len(self._buffer) < _HEAD_BYTES:
            return None
        end = _HEAD_BYTES + int.from_bytes(self._buffer[:3])
        if len(self._buffer) < end:
            return None
        kind, flags, stream_id = self._buffer[3], self._buffer[4], int.from_bytes(self._buffer[5:9]) & 0x7FFFFFFF
        payload = bytes(self._buffer[_HEAD_BYTES:end])
        del self._buffer[:end]
        return Received(kind, flags, stream_id, payload)


PING_HEAD = (8).to_bytes(3) + bytes([PING, 0, 0, 0, 0, 0])


def reach(target: Target, receive_bytes: int | None = None) -> socket.socket:
    """Connect to a daemon without a word."""
    plain = socket.socket()
    try:
        plain.settimeout(WAIT_SECONDS)
        if receive_bytes is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        plain.connect(("127.0.0.1", target.resolve()[1]))
    except BaseException:
        plain.close()
        raise
    return plain


def data_frame(stream_id: int, data: bytes, *, end: bool = True) -> bytes:
    """Make a DATA frame."""
    return DataFrame(stream_id, data, flags=["END_STREAM"] if end else []).serialize()


def window_update(stream_id: int, increment: int) -> bytes:
    """Make a WINDOW_UPDATE frame."""
    return WindowUpdateFrame(stream_id, increment).serialize()


def raw_frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Make a frame that hyperframe might not."""
    return (
        len(payload).to_bytes(3) + bytes([kind & 0xFF, flags & 0xFF]) + (stream_id & 0xFFFFFFFF).to_bytes(4) + payload
    )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()
