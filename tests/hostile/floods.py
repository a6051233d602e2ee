"""Attacks that are made of very much of something, each bounded in count and time."""

import contextlib
import random
import socket
import ssl
from dataclasses import dataclass

from hyperframe.frame import SettingsFrame
from worker_api.worker.v1 import StreamLogRequest, WhoAmIRequest

from tests.hostile.attacker import (
    DATA,
    HEADERS,
    PING_HEAD,
    WAIT_SECONDS,
    Connection,
    data_frame,
    message,
    raw_frame,
    reach,
    request_headers,
    window_update,
)
from tests.raw import client_hello
from workerctl.target import Target

_CONTINUATION, _EMPTY_SETTINGS = 9, raw_frame(4, 0, 0, b"")
_END_HEADERS = 4
_LARGEST_WINDOW = (1 << 31) - 1
_WINDOW, _FRAME = 4, 5  # SETTINGS_INITIAL_WINDOW_SIZE, SETTINGS_MAX_FRAME_SIZE (RFC 9113 §6.5.2)
_LOUD = 200_000


@dataclass(frozen=True)
class Attack:
    """What an attack has.

    Attributes:
        job_id: an ended job of the attacker's own, with a log of some megabytes.
    """

    target: Target
    context: ssl.SSLContext
    source: random.Random
    job_id: str

    def connect(self, receive_bytes: int | None = None) -> Connection:
        """Open a connection with the attacker's certificate."""
        return Connection(self.target, self.context, receive_bytes)

    def follow(self) -> bytes:
        """Make the request for the log."""
        return message(bytes(StreamLogRequest(job_id=self.job_id)))


def pour(connection: Connection, piece: bytes, times: int) -> None:
    """Send something over and over until the daemon closes, or takes no more of it."""
    at_once = max(1, (1 << 16) // len(piece))
    with contextlib.suppress(TimeoutError):
        for _ in range(times // at_once + 1):
            if not connection.send(piece * at_once):
                return


def rapid_reset(attack: Attack) -> None:
    """Open calls and reset them at once (CVE-2023-44487)."""
    with attack.connect() as connection:
        connection.open()
        for _ in range(200):
            frames = []
            for _ in range(100):
                stream_id = connection.take_stream()
                frames.append(connection.headers(stream_id, request_headers("WhoAmI")))
                frames.append(raw_frame(3, 0, stream_id, (8).to_bytes(4)))
            if not connection.send(b"".join(frames)):
                return
        connection.is_alive(b"were_reset")


def many_headers(attack: Attack) -> None:
    """Send calls with thousands of headers each."""
    for _ in range(20):
        with attack.connect() as connection:
            more = [(f"x-{number}", "v") for number in range(1500)]
            connection.open().send(connection.headers(1, request_headers("WhoAmI", *more), "END_STREAM"))
            connection.is_alive(b"headers!")


def indexed_headers(attack: Attack) -> None:
    """Send a long header once, and then its number thousands of times (RFC 7541 §7.3)."""
    for _ in range(20):
        with attack.connect() as connection:
            connection.open().send(
                connection.headers(1, request_headers("WhoAmI", ("x-bomb", "b" * 3500)), "END_STREAM")
            )
            connection.send(raw_frame(HEADERS, 5, 3, bytes([0x80 | 62]) * 16_000))
            connection.is_alive(b"indexed!")


def endless_continuation(attack: Attack) -> None:
    """Begin headers that never end (CVE-2024-27316), with and without content."""
    for piece in (b"x" * 16_384, b""):
        with attack.connect() as connection:
            connection.open().send(raw_frame(HEADERS, 0, 1, b""))
            pour(connection, raw_frame(_CONTINUATION, 0, 1, piece), 20_000)
            assert not connection.is_alive(b"endless!")


def pings(attack: Attack) -> None:
    """Have PINGs answered, and read no answer (CVE-2019-9512)."""
    with attack.connect(1 << 12) as connection:
        connection.open()
        connection.socket.settimeout(3.0)
        pour(connection, PING_HEAD + b"answer!!", _LOUD)


def settings(attack: Attack) -> None:
    """Have settings acknowledged, and read no acknowledgement (CVE-2019-9515)."""
    with attack.connect(1 << 12) as connection:
        connection.open()
        connection.socket.settimeout(3.0)
        pour(connection, _EMPTY_SETTINGS, _LOUD)


def window_updates(attack: Attack) -> None:
    """Move a window byte by byte."""
    with attack.connect() as connection:
        connection.open()
        pour(connection, window_update(0, 1), _LOUD)
        connection.is_alive(b"windows!")


def empty_data(attack: Attack) -> None:
    """Send the nothing of a call in very many pieces (CVE-2019-9518), to one that reads no more."""
    with attack.connect() as connection:
        connection.open({_WINDOW: 0})
        stream_id = connection.take_stream()
        connection.send(connection.headers(stream_id, request_headers("StreamLog")))
        connection.send(data_frame(stream_id, attack.follow(), end=False))
        pour(connection, data_frame(stream_id, b"", end=False), _LOUD)
        connection.is_alive(b"nothing!")


def zero_windows(attack: Attack) -> None:
    """Ask for logs on very many streams, and take not a byte of them (CVE-2019-9517)."""
    with attack.connect() as connection:
        connection.open({_WINDOW: 0})
        for _ in range(900):
            if not connection.send(connection.request("StreamLog", attack.follow())):
                return
        connection.is_alive(b"no bytes")


def small_windows(attack: Attack) -> None:
    """Ask for logs on very many streams, and take of each no more than a small window holds."""
    streams, window = 900, 1 << 13
    with attack.connect() as connection:
        connection.open({_WINDOW: window})
        connection.send(window_update(0, _LARGEST_WINDOW - 65_535))
        for _ in range(streams):
            if not connection.send(connection.request("StreamLog", attack.follow())):
                return
        left = streams * window
        for frame in connection.received():
            left -= len(frame.payload) if frame.kind == DATA else 0
            if not left:
                break
        assert connection.is_alive(b"a little")


def never_reading(attack: Attack) -> None:
    """Ask for logs on very many streams with the widest windows and largest frames, and read nothing."""
    with attack.connect(1 << 12) as connection:
        connection.open({_WINDOW: _LARGEST_WINDOW, _FRAME: (1 << 24) - 1})
        connection.send(window_update(0, _LARGEST_WINDOW - 65_535))
        connection.socket.settimeout(3.0)
        with contextlib.suppress(TimeoutError):
            for _ in range(900):
                if not connection.send(connection.request("StreamLog", attack.follow())):
                    return
        with attack.connect() as other:
            other.open().is_alive(b"meantime")


def begun_requests(attack: Attack) -> None:
    """Begin requests of just under the longest, and end none of them."""
    with attack.connect() as connection:
        connection.open()
        streams = [connection.take_stream() for _ in range(36)]  # unbounded, more than the memory that may be grown
        size = (1 << 23) - 1
        for stream_id in streams:
            connection.send(connection.headers(stream_id, request_headers("Spawn")))
            connection.upload(stream_id, b"\0" + size.to_bytes(4), end=False)
        piece, left = b"\x0a" * 16_384, size - 16_384
        while left > 0:
            for stream_id in streams:
                if not connection.upload(stream_id, piece, end=False):
                    return
            left -= len(piece)
        connection.is_alive(b"begun!!!")


def tiny_parts(attack: Attack) -> None:
    """Send requests as long as may be, of the smallest parts there are."""
    with attack.connect() as connection:
        connection.open()
        for rpc, part in (
            ("Spawn", b"\x12\x00"),
            ("List", b"\x08\x01"),
            ("WhoAmI", b"\x78\x01"),
            ("Spawn", b"\x1a\x00"),
        ):
            data = message(part * ((1 << 21) // len(part)))
            connection.call(request_headers(rpc), data)


def announced_frames(attack: Attack) -> None:
    """Announce the longest frames that HTTP/2 has, and send most of each."""
    for _ in range(10):
        with attack.connect() as connection:
            connection.open().send(((1 << 24) - 1).to_bytes(3) + bytes([0, 0, 0, 0, 0, 1]))
            pour(connection, b"\0", 1 << 23)


def half_open(attack: Attack, count: int = 2_000) -> None:
    """Open connections by the thousand and say nothing on them, or half of what TLS begins with."""
    hello = client_hello(attack.context)
    with contextlib.ExitStack() as opened:
        for number in range(count):
            try:
                plain = opened.enter_context(reach(attack.target))
            except OSError:  # refused, or reset: the daemon takes no more
                continue
            with contextlib.suppress(OSError):
                plain.sendall(hello[: number % len(hello)])
        with attack.connect() as connection:  # among all of them, somebody is served
            assert connection.open().is_alive(b"served!!")


def garbage(attack: Attack) -> None:
    """Send what is neither TLS nor HTTP/2 to the port: noise, plain HTTP, altered handshakes, and noise within TLS."""
    source, hello = attack.source, client_hello(attack.context)
    for number in range(300):
        altered = bytearray(hello)
        for _ in range(source.randrange(1, 20)):
            altered[source.randrange(len(altered))] = source.randrange(256)
        noise = source.randbytes(source.randrange(1, 2000))
        plain_http = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        data = (noise, bytes(altered), plain_http, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise)[number % 4]
        with contextlib.suppress(OSError), reach(attack.target) as plain:
            plain.sendall(data)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(1 << 16):
                pass
    for _ in range(30):
        with attack.connect() as connection:
            connection.send(source.randbytes(source.randrange(1, 5000)))


def byte_by_byte(attack: Attack) -> None:
    """Send a handshake, a preface, headers and a request one byte at a time, each in a packet of its own."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = attack.context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with reach(attack.target) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def drip() -> None:
            for byte in outgoing.read():
                plain.sendall(bytes([byte]))

        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                drip()
                incoming.write(plain.recv(1 << 16))
        drip()
        with attack.connect() as model:  # of whose bytes only the form is used
            said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame().serialize()
            said += model.request("WhoAmI", message(bytes(WhoAmIRequest())))
        for byte in said:
            tls.write(bytes([byte]))
            drip()
        plain.settimeout(WAIT_SECONDS)
        answer = b""
        while attack.target.username is not None and attack.target.username.encode() not in answer:
            data = plain.recv(1 << 16)
            assert data, "the daemon closed instead of an answer"
            incoming.write(data)
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:
                    answer += tls.read(1 << 16)


ATTACKS = (
    rapid_reset,
    many_headers,
    indexed_headers,
    endless_continuation,
    pings,
    settings,
    window_updates,
    empty_data,
    zero_windows,
    small_windows,
    never_reading,
    begun_requests,
    tiny_parts,
    announced_frames,
    half_open,
    garbage,
    byte_by_byte,
)
