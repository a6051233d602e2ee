"""The connection to a daemon. What reaches into grpclib's inside stands here and nowhere else.

- A connection that is lost says why: grpclib drops the reason, which for a certificate that the daemon refuses is the
  only thing that helps (in TLS 1.3 the client learns of it after its handshake is done: RFC 8446 §4.4.2.4).
- Frames that carry data are not formatted for a trace log that nobody reads: h2 does so for every frame that it
  receives (`H2Connection._receive_frame`), and hyperframe writes out all of a frame's bytes in hexadecimal for it.
- Details of errors are decoded without Google's protobuf library.
- A peer that vanished without a word is noticed, and one whose network keeps the connection and passes nothing on, for
  which TCP's own means (tcp(7), SO_KEEPALIVE and TCP_USER_TIMEOUT) are blind: whatever stands between answers them.
  grpclib's PINGs (`grpclib.protocol.Connection._ping`) end with a polite close, which waits for the peer that has gone,
  and stop after two when nothing is sent, which is all that a reader does.
- The messages of a stream are taken as they come in, many at once: grpclib takes them one at a time.
- A connection that is lost between two steps of a call ends the call, which grpclib would leave waiting.
- A daemon that closes a connection says why, and grpclib drops that.
"""

import asyncio
import errno
import socket
import ssl
import time
from asyncio import BaseTransport, Transport
from collections.abc import AsyncGenerator
from typing import Any, cast
from urllib.parse import quote

from betterproto2 import Message
from grpclib.client import Channel, Handler
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import H2Protocol
from h2.config import H2Configuration
from h2.events import ConnectionTerminated
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame
from worker_api.google.rpc import Status as StatusMessage

from pki.errors import CertificateExpired, CertificateRevoked
from workerctl.retry import DEFAULT_KEEPALIVE_SECONDS

_ALERTS = {  # as OpenSSL calls those of RFC 8446 §6.2
    "SSLV3_ALERT_CERTIFICATE_REVOKED": CertificateRevoked(),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": CertificateExpired(),
}
_ADVICE = {  # OpenSSL's alert for X509_V_ERR_CERT_NOT_YET_VALID, among others (ssl_x509err2alert)
    "SSLV3_ALERT_BAD_CERTIFICATE": "it may not be valid yet, and a clock be wrong: compare the daemon's, this machine's"
    " and what `workerctl pki show NAME` says",
}
_USERNAME = "workerd-username"
_CLOSE_SECONDS = 1.0
_CONNECT_SECONDS = 10.0
# A daemon's largest messages of output fit into one frame; every frame costs both sides some (RFC 9113 §4.2).
_FRAME_BYTES = 1 << 19
_PREFIX_BYTES = 5
_LONGEST_REASON = 300
_TURNS = 4
_PING = b"workerct"  # any eight bytes (RFC 9113 §6.7)


def _describe_data_frame(frame: DataFrame) -> str:
    return f"{len(frame.data)} bytes"


DataFrame._body_repr = _describe_data_frame  # type: ignore[method-assign, assignment]


def is_not_authenticated(error: BaseException) -> bool:
    """Return whether TLS failed because the peer did not prove that it is the daemon, or does not speak TLS."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)  # which is a cut connection


class StatusDetailsCodec(StatusDetailsCodecBase):
    """Takes details out of a google.rpc.Status."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """Not for clients."""
        raise NotImplementedError

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        """Decode the details of an error."""
        del status, message
        return [detail.unpack() for detail in StatusMessage.FromString(data).details]


class _Protocol(H2Protocol):
    """One connection.

    Four times in `keepalive_seconds` it sends a PING; when nothing at all has come since the fourth turn before, the
    connection is dead. Sent always and not only in silence, PINGs show the daemon a living client even while the way
    to the client is choked with output. Turns are counted, not seconds: who was stopped itself has not waited.

    Attributes:
        lost: set when the connection is no more.
        lost_because: what the transport said of it.
        heard_at: when the daemon was last known to be there (time.monotonic); None if it never said anything.
    """

    lost_because: BaseException | None = None
    heard_at: float | None = None

    def __init__(self, config: Configuration, h2_config: H2Configuration, keepalive_seconds: float) -> None:
        super().__init__(Handler(), config, h2_config)
        self.lost = asyncio.Event()
        self._keepalive_seconds = keepalive_seconds
        self._silent_turns = 0

    def connection_made(self, transport: BaseTransport) -> None:
        self.transport = cast("Transport", transport)
        super().connection_made(transport)
        h2 = self.connection._connection
        h2.update_settings({SettingCodes.MAX_FRAME_SIZE: _FRAME_BYTES})
        # At once: h2 would begin only with what is read after the daemon's acknowledgement, and refuse a large frame
        # that comes in the same read (`H2Connection.receive_data`).
        h2.max_inbound_frame_size = _FRAME_BYTES
        self.connection.flush()
        self.processor.processors[ConnectionTerminated] = self._take_goodbye
        self._arm()

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        self._silent_turns = 0
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._turn.cancel()
        if self.lost_because is None:
            self.lost_because = exc
            if self.heard_at is not None:
                self.heard_at = time.monotonic()
        self.lost.set()
        super().connection_lost(exc)
        # A call that is about to send its request waits for these, and no list knows of it: let it run into the end.
        self.connection._connection.close_connection()
        self.connection.write_ready.set()
        self.connection.stream_close_waiter.set()

    def _take_goodbye(self, event: ConnectionTerminated) -> None:
        said = (event.additional_data or b"").decode(errors="replace")
        if said.isprintable() and said and self.lost_because is None:
            self.lost_because = ConnectionError(said[:_LONGEST_REASON])
        self.processor.process_connection_terminated(event)

    def _arm(self) -> None:
        self._turn = asyncio.get_running_loop().call_later(self._keepalive_seconds / _TURNS, self._take_turn)

    def _take_turn(self) -> None:
        self._silent_turns += 1
        if self._silent_turns == _TURNS:
            self.lost_because = TimeoutError(f"nothing was heard for {self._keepalive_seconds:g} s")
            self.transport.abort()
        elif not self.transport.is_closing():
            self.connection._connection.ping(_PING)
            self.connection.flush()
            self._arm()


class WorkerChannel(Channel):
    """A channel that makes one connection, notices its death, and remembers why it was lost.

    Args:
        keepalive_seconds: how long the daemon may be silent before it is taken for dead; greater than zero.
        acting_for: the name or id of the user whom all calls are made for; None for that of the certificate.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext,
        keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS,
        acting_for: str | None = None,
    ) -> None:
        super().__init__(
            host,
            port,
            ssl=tls,
            codec=ProtoCodec(),
            status_details_codec=StatusDetailsCodec(),
            config=Configuration(http2_connection_window_size=2**24, http2_stream_window_size=2**23),
        )
        self.endpoint = f"https://{f'[{host}]' if ':' in host else host}:{port}"
        self._keepalive_seconds = keepalive_seconds
        self._last: _Protocol | None = None
        self._acting_for = acting_for

    def request(self, *arguments: Any, metadata: Any = None, **options: Any) -> Any:
        """Begin a call, as grpclib does, for the user whom it is made for."""
        if self._acting_for is not None:
            metadata = [*dict(metadata or {}).items(), (_USERNAME, quote(self._acting_for))]
        return super().request(*arguments, metadata=metadata, **options)

    def _protocol_factory(self) -> H2Protocol:
        self._last = _Protocol(self._config, self._h2_config, self._keepalive_seconds)
        return self._last

    async def _create_connection(self) -> H2Protocol:
        """Connect to the first of the host's addresses where a daemon proves that it is the right one.

        Each address gets an equal share of the time that is left: another account may listen at the port of one
        address, and never answer, while the daemon has another address.

        Raises:
            OSError: one of the failures: that of a certificate or of TLS, or else the first.
        """
        seconds = min(_CONNECT_SECONDS, self._keepalive_seconds)
        loop, failures = asyncio.get_running_loop(), list[OSError]()
        deadline = loop.time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
                for left in range(len(addresses), 0, -1):
                    family, address = addresses[-left]
                    try:
                        async with asyncio.timeout((deadline - loop.time()) / left):
                            return await self._connect_to(family, address)
                    except OSError as error:  # a TimeoutError and an ssl.SSLError, too
                        failures.append(error)
        except TimeoutError as error:
            failures.append(error)
        told = next((each for each in failures if is_not_authenticated(each)), failures[0])
        if isinstance(told, TimeoutError) and told.errno is None:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} s") from told
        raise told

    async def _connect_to(self, family: int, address: Any) -> H2Protocol:
        # With the protocol, or asyncio does not turn Nagle's algorithm off (`asyncio.base_events._set_nodelay`).
        connection = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            connection.setblocking(False)
            await self._loop.sock_connect(connection, address)
        except BaseException:
            connection.close()
            raise
        _, protocol = await self._loop.create_connection(  # which closes the socket if it fails
            self._protocol_factory, sock=connection, ssl=self._ssl, server_hostname=self._host
        )
        return protocol

    async def __connect__(self) -> H2Protocol:
        protocol = await super().__connect__()
        if self.lost:  # since it was made: grpclib would go on with what is left of it
            raise StreamTerminatedError("Connection lost")
        return protocol

    async def receive(self, path: str, request: Message) -> AsyncGenerator[list[memoryview], None]:
        """Call an RPC that answers with a stream of messages.

        Args:
            path: of the RPC, `/package.Service/Method`.

        Yields:
            Messages as they went over the wire, one or more at a time.

        Raises:
            GRPCError, StreamTerminatedError: as from a call with a stub.
        """
        cardinality = Cardinality.UNARY_STREAM
        async with self.request(path, cardinality, type(request), type(request)) as stream:  # answers are not decoded
            await stream.send_message(request, end=True)
            await stream.recv_initial_metadata()
            buffer = stream._stream.buffer
            rest = b""
            while True:
                with stream._wrapper:  # raises what ended the connection
                    data, _, flow_controlled = await buffer._unacked.get()
                    buffer._ack_callback(flow_controlled)
                if not flow_controlled:
                    break
                messages, rest = _split(rest + data if rest else data)
                if messages:
                    yield messages
            if rest:
                raise StreamTerminatedError("the last message is cut off")
            await stream.recv_trailing_metadata()

    async def aclose(self) -> None:
        """Close the connection, and wait until it is closed."""
        self.close()
        if self._last is not None and hasattr(self._last, "transport"):
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._last.lost.wait()
            except TimeoutError:
                self._last.transport.abort()
                await self._last.lost.wait()

    @property
    def lost(self) -> bool:
        """Whether there was a connection that is no more."""
        return self._last is not None and self._last.lost.is_set()

    @property
    def heard_at(self) -> float | None:
        """When the daemon was last known to be there (time.monotonic); None if it never said anything."""
        return None if self._last is None else self._last.heard_at

    @property
    def refused(self) -> bool:
        """Whether the daemon's first word was a TLS alert: it does not take the certificate (RFC 8446 §6.2)."""
        reason = None if self._last is None else self._last.lost_because
        return self.heard_at is None and isinstance(reason, ssl.SSLError) and "ALERT" in (reason.reason or "")

    @property
    def lost_because(self) -> str:
        """Why the last connection was lost, for people."""
        reason = None if self._last is None else self._last.lost_because
        if self.refused and isinstance(reason, ssl.SSLError):
            if (known := _ALERTS.get(reason.reason or "")) is not None:
                return str(known)
            said = (reason.reason or "").lower().replace("_", " ")
            advice = _ADVICE.get(reason.reason or "", "is it a user's, of this daemon's authority? check --pki-dir")
            return f"it refused the certificate ({said}): {advice}"
        return "the connection was closed" if reason is None else f"the connection was lost: {reason}"


def _split(data: bytes) -> tuple[list[memoryview], bytes]:
    """Split what was received into whole messages and the rest.

    Before each message stands whether it is compressed, and its length in four bytes, big-endian
    (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message").
    """
    messages = []
    view = memoryview(data)
    start = 0
    while start + _PREFIX_BYTES <= len(data):
        if data[start]:
            raise StreamTerminatedError("the daemon sent a compressed message, which was not asked for")
        end = start + _PREFIX_BYTES + int.from_bytes(view[start + 1 : start + _PREFIX_BYTES])
        if end > len(data):
            break
        messages.append(view[start + _PREFIX_BYTES : end])
        start = end
    return messages, data[start:]
