"""The daemon's side of gRPC. What reaches into grpclib's inside stands here and nowhere else.

- A call of an RPC that nobody serves is answered in full: grpclib's own answer lacks the content type, which its own
  client then takes for the failure (`grpclib.server._abort`).
- Messages that are encoded already are sent as they are, many at once: grpclib sends one at a time.
- A peer that vanished without a word is noticed, and one whose network keeps the connection and passes nothing on, for
  which TCP's own means (tcp(7), SO_KEEPALIVE and TCP_USER_TIMEOUT) are blind: whatever stands between answers them.
  grpclib's PINGs (`grpclib.protocol.Connection._ping`) end with a polite close, which waits for the peer that has gone,
  and leave the connection's calls as they are until then.
"""

import asyncio
import functools
from asyncio import BaseTransport, Transport
from typing import Any, cast

from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import H2Protocol
from grpclib.server import Server, Stream
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from workerd.codec import Encoded
from workerd.http2 import Calls, StrictProtocol
from workerd.receiving import receive

_TURNS = 4
# Calls on one connection at a time: a client waits with the next (RFC 9113 §5.1.2), which may be a stop. h2 says 100.
_MAX_STREAMS = 1000
_PING = b"workerd\0"  # any eight bytes (RFC 9113 §6.7)


def bound_request(stream: Stream[Any, Any]) -> None:
    """Have `recv_message` of a stream take requests as `workerd.receiving` does."""
    stream.recv_message = functools.partial(receive, stream)  # type: ignore[method-assign]


async def send(stream: Stream[Any, Any], response: Any) -> None:
    """Send a message, or the messages that are `Encoded`.

    Raises:
        StreamTerminatedError: the client has gone.
    """
    try:
        if type(response) is not Encoded:
            await stream.send_message(response)
            return
        if not stream._send_initial_metadata_done:
            await stream.send_initial_metadata()
        await stream._stream.send_data(response.data)
    except ProtocolError as error:
        wrapper = stream._stream.wrapper
        if wrapper is None or not wrapper.cancelled:
            raise
        # grpclib cancels the call, but its turn to send may come before that does.
        raise StreamTerminatedError("the client has gone") from error


class _Routes(dict[str, Handler]):
    """The routes by path; a path that is not there leads to an answer that says so."""

    def get(self, path: str, default: Any = None) -> Any:
        del default
        return self[path] if path in self else Handler(_unserved(path), Cardinality.UNARY_UNARY, bytes, bytes)


def _unserved(path: str) -> Any:
    async def refuse(stream: Stream[Any, Any]) -> None:
        del stream
        raise GRPCError(Status.UNIMPLEMENTED, f"this daemon has no {path}: update it, or install the plugin there")

    return refuse


class _Protocol(StrictProtocol):
    """One connection.

    When nothing at all has come for two quarters of `keepalive_seconds` in a row, it sends a PING; after two more, the
    connection is dead and its calls end. A reader that is slow with its output is not: PINGs pass it by (RFC 9113
    §5.2.1), and its own come meanwhile. Turns are counted, not seconds: who was stopped itself has not waited.
    """

    keepalive_seconds: float
    _silent_turns = 0

    def connection_made(self, transport: BaseTransport) -> None:
        self._transport = cast("Transport", transport)
        super().connection_made(transport)
        self.connection._connection.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS})
        self.connection.flush()
        self._arm()

    def data_received(self, data: bytes) -> None:
        self._silent_turns = 0
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._turn.cancel()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._turn = asyncio.get_running_loop().call_later(self.keepalive_seconds / _TURNS, self._take_turn)

    def _take_turn(self) -> None:
        self._silent_turns += 1
        if self._silent_turns == _TURNS:
            self._transport.abort()
            return
        if self._silent_turns == _TURNS // 2 and not self._transport.is_closing():
            self.connection._connection.ping(_PING)
            self.connection.flush()
        self._arm()


class WorkerServer(Server):
    """A server whose every answer is a whole one, and that lets go of connections that are dead.

    Args:
        keepalive_seconds: after how much silence a connection is; greater than zero.
    """

    def __init__(self, *arguments: Any, keepalive_seconds: float, **options: Any) -> None:
        super().__init__(*arguments, config=Configuration(_keepalive_time=None), **options)
        self._mapping = _Routes(self._mapping)
        self._keepalive_seconds = keepalive_seconds

    def _protocol_factory(self) -> H2Protocol:
        self.__gc_step__()
        calls = Calls(self._mapping, self._codec, self._status_details_codec, self.__dispatch__)
        self._handlers.add(calls)
        protocol = _Protocol(calls, self._config)
        protocol.keepalive_seconds = self._keepalive_seconds
        return protocol
