"""The daemon's side of gRPC: its server, and how messages are taken and sent.

What reaches into the inside of grpclib and h2 stands in this room (`workerd.network`) and nowhere else.

- A call of an RPC that nobody serves is answered in full: grpclib's own answer lacks the content type, which its own
  client then takes for the failure (`grpclib.server._abort`).
- Messages that are encoded already are sent as they are, many at once: grpclib sends one at a time.
- No more is read for a client than it takes: grpclib waits for room only once a message is there to be sent.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

from grpclib.config import Configuration
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import StreamTerminatedError
from grpclib.protocol import Connection, H2Protocol
from grpclib.server import Server, Stream
from h2.exceptions import ProtocolError

from workerd.errors import Unsupported, to_grpc
from workerd.network.acceptor import Acceptor
from workerd.network.codec import Encoded
from workerd.network.connection import Surroundings, WorkerProtocol
from workerd.network.encoding import frame
from workerd.network.http2 import Calls
from workerd.network.request_buffer import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES

_ROOM_BYTES = 1 << 13  # what is worth reading for
_SHOWN = 200


def connection_of(stream: Stream[Any, Any]) -> Connection:
    """Give the connection that a stream is one of."""
    return stream._stream.connection


def has_gone(stream: Stream[Any, Any]) -> bool:
    """Tell whether the client of a call has gone; who that was cannot be asked any more then."""
    return stream._stream._transport.is_closing()


def is_open(stream: Stream[Any, Any]) -> bool:
    """Tell whether a call is still one, and was not reset."""
    wrapper = stream._stream.wrapper
    return wrapper is None or not wrapper.cancelled


def encode(stream: Stream[Any, Any], response: Any) -> Encoded:
    """Encode a message for a stream, unless it is encoded already."""
    if type(response) is Encoded:
        return response
    return Encoded(b"".join(frame(stream._codec.encode(response, stream._send_type))))


async def send(stream: Stream[Any, Any], response: Any) -> None:
    """Send a message, or the messages that are `Encoded`.

    Raises:
        StreamTerminatedError: the client has gone.
    """
    if has_gone(stream):
        raise StreamTerminatedError("the client has gone")
    encoded = encode(stream, response)
    try:
        if not stream._send_initial_metadata_done:
            await stream.send_initial_metadata()
        await stream._stream.send_data(encoded.data)
        stream._send_message_done = True  # without which grpclib takes the one answer of a call for missing
    except ProtocolError as error:
        if is_open(stream):
            raise
        # grpclib cancels the call, but its turn to send may come before that does.
        raise StreamTerminatedError("the client has gone") from error


def has_room(stream: Stream[Any, Any]) -> bool:
    """Return whether something can be sent to a client now, or the call was reset."""
    raw = stream._stream
    h2 = raw._h2_connection
    return raw.connection.write_ready.is_set() and (
        raw.id not in h2.streams or h2.local_flow_control_window(raw.id) > 0
    )


async def wait_for_room(stream: Stream[Any, Any]) -> None:
    """Wait until a client takes some of what there is to send, so that nothing is read for one that takes nothing.

    A client may have very many streams, and each holds what was read for it until it takes that.
    """
    raw = stream._stream
    while not has_room(stream):
        if raw.connection.write_ready.is_set():
            raw.window_updated.clear()
            await raw.window_updated.wait()
        await raw.connection.write_ready.wait()


def room_of(stream: Stream[Any, Any]) -> int:
    """Tell how many bytes are worth preparing next for a client: as many as it takes just now, and not few.

    What it does not take is held until it does.
    """
    raw = stream._stream
    h2 = raw._h2_connection
    return max(h2.local_flow_control_window(raw.id) if raw.id in h2.streams else 0, _ROOM_BYTES)


class _Routes(dict[str, Handler]):
    """The routes by path; a path that is not there leads to an answer that says so."""

    def get(self, path: str, default: Any = None) -> Any:
        del default
        return self[path] if path in self else Handler(_unserved(path), Cardinality.UNARY_UNARY, bytes, bytes)


def _unserved(path: str) -> Any:
    async def refuse(stream: Stream[Any, Any]) -> None:
        del stream
        # Cut, as it goes into a header, whose compression takes time that grows with the square of its length.
        raise to_grpc(Unsupported(f"this daemon has no {path[:_SHOWN]}: update it, or install the plugin"))

    return refuse


class WorkerServer(Server):
    """A server whose every answer is a whole one, and that lets go of connections that are dead, idle or too many."""

    def __init__(self, *arguments: Any, around: Surroundings, **options: Any) -> None:
        configuration = Configuration(
            _keepalive_time=None,
            http2_connection_window_size=CONNECTION_WINDOW_BYTES,
            http2_stream_window_size=STREAM_WINDOW_BYTES,
        )
        super().__init__(*arguments, config=configuration, **options)
        self._mapping = _Routes(self._mapping)
        self._around = around

    def serve(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        """Answer calls over connections to a listening socket, until `close`."""
        acceptor = Acceptor(listening, context, self._make_protocol, self._around.meter, self._around.notices)
        self._server = cast("asyncio.AbstractServer", acceptor)
        self._server_closed_fut = asyncio.get_running_loop().create_future()

    def _make_protocol(self, on_lost: Callable[[], None]) -> H2Protocol:
        arguments = self._mapping, self._codec, self._status_details_codec, self.__dispatch__
        calls = Calls(*arguments, meter=self._around.meter, notices=self._around.notices, on_end=self._handlers.discard)
        self._handlers.add(calls)
        protocol = WorkerProtocol(calls, self._config)
        protocol.around, protocol.on_lost = self._around, on_lost
        return protocol
