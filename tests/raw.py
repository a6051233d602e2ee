"""A peer that speaks HTTP/2 over mutual TLS, and says whatever a test wants it to."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator

from grpclib.const import Status
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, ResponseReceived, TrailersReceived

from tests.daemon import USER, Daemon

SERVICE = "/worker.v1.WorkerService/"
_READ_BYTES = 1 << 16


class Peer:
    """One connection to a daemon.

    Attributes:
        h2: what has been said so far; `send` sends what it has ready.
        events: what has been received.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.h2 = H2Connection(H2Configuration(client_side=True, validate_outbound_headers=False))
        self.h2.initiate_connection()
        self.events: list[Event] = []
        self.send()

    def send(self, data: bytes = b"") -> bool:
        """Send bytes after those that are ready; return whether the daemon still takes them."""
        try:
            self.socket.sendall(self.h2.data_to_send() + data)
        except OSError:
            return False
        return True

    def open(self, rpc: str, *headers: tuple[str, str]) -> int:
        """Begin a call, and return its stream; nothing is sent yet."""
        stream_id = self.h2.get_next_available_stream_id()
        required = (":method", "POST"), (":scheme", "https"), (":path", SERVICE + rpc), (":authority", "localhost")
        self.h2.send_headers(stream_id, [*required, ("te", "trailers"), ("content-type", "application/grpc"), *headers])
        return stream_id

    def request(self, stream_id: int, message: bytes, *, end: bool = True) -> None:
        """Send a call's request."""
        self.h2.send_data(stream_id, b"\0" + len(message).to_bytes(4) + message, end_stream=end)

    def read(self, kind: type[Event] = ConnectionTerminated, seconds: float = 10.0) -> Event | None:
        """Read until an event of a kind comes, or the daemon closes the connection, or time is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(_READ_BYTES)
            except TimeoutError:
                return None
            except OSError:
                return self._goodbye()
            if not data:
                return self._goodbye()
            events = self.h2.receive_data(data)
            self.events += events
            if any(isinstance(event, kind) for event in events):
                return next(event for event in events if isinstance(event, kind))
            self.send()
        return None

    def closed(self, seconds: float) -> bool:
        """Tell whether the daemon closes the connection in time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if not self.socket.recv(_READ_BYTES):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False

    def _goodbye(self) -> Event | None:
        return next((event for event in self.events if isinstance(event, ConnectionTerminated)), None)


@contextlib.contextmanager
def peer(daemon: Daemon, user: str = USER) -> Iterator[Peer]:
    """Connect to a daemon as a user."""
    plain = socket.create_connection(("127.0.0.1", daemon.port), timeout=10)
    with daemon.target(user).tls().wrap_socket(plain, server_hostname="localhost") as connection:
        yield Peer(connection)


def status(events: list[Event]) -> Status | None:
    """Return the status that a call ended with."""
    headers = [each.headers for each in events if isinstance(each, ResponseReceived | TrailersReceived)]
    values = [int(value) for each in headers for name, value in each or [] if name == b"grpc-status"]
    return Status(values[-1]) if values else None


def client_hello(context: ssl.SSLContext) -> bytes:
    """Give what a client with these settings says first."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()
