"""What comes over a connection before it is a call, and what grpclib and h2 would let through or fall over.

- Malformed headers: grpclib has h2 pass them all, and fails on what it misses without any answer. They end the
  connection (RFC 9113 §8.1.1).
- Frames of unknown kinds: h2 tells of them, and grpclib fails on being told. They are passed over (RFC 9113 §5.5).
- Frames that are announced longer than they may be: h2 refuses them when they are there as a whole.
- DATA frames without data: grpclib takes one for the end of the request, and keeps them when nobody reads.
- Time limits and binary metadata that are none: grpclib fails on them without any answer, or with a traceback.
- A peer that has much answered (PING, SETTINGS, errors) and reads nothing: grpclib keeps all answers.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as Method
from grpclib.exceptions import GRPCError
from grpclib.metadata import decode_metadata
from grpclib.protocol import EventsProcessor, H2Protocol
from grpclib.protocol import Stream as RawStream
from grpclib.server import Handler, Stream, request_handler
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.events import Event as H2Event

from workerd.engine.errors import InvalidArgument
from workerd.errors import to_grpc

_HEAD_BYTES = 9  # RFC 9113 §4.1
# Some thousands of answers: nobody who reads has so many waiting.
_MAX_UNREAD_BYTES = 1 << 18
# gRPC over HTTP2, Requests: at most eight digits.
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
# grpclib logs a time limit that is over before it looks at it as a fault.
_SHORTEST_TIMEOUT = "1m"

Headers = list[tuple[str, str]]

H2_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding="ascii",
    validate_inbound_headers=True,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)


class Calls(Handler):
    """What a connection does with calls: it answers those whose headers are none with what is wrong with them."""

    def accept(self, stream: RawStream, headers: Any, release_stream: Callable[[], Any]) -> None:
        """Have a call answered."""
        try:
            checked = _check(headers)
        except InvalidArgument as error:
            mapping = _Always(Method(_refusal(error), Cardinality.UNARY_UNARY, bytes, bytes))
            answered = [(name, value) for name, value in headers if not _is_checked(name)]
        else:
            super().accept(stream, checked, release_stream)
            return
        self.__gc_step__()
        self._tasks[stream] = self.loop.create_task(
            request_handler(
                mapping, stream, answered, self.codec, self.status_details_codec, self.dispatch, release_stream
            )
        )


class _Always(dict[str, Method]):
    """Routes that all lead to one place."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self._method = method

    def get(self, path: str, default: Any = None) -> Any:
        del path, default
        return self._method


def _refusal(error: InvalidArgument) -> Any:
    async def refuse(stream: Stream[Any, Any]) -> None:
        del stream
        raise to_grpc(error)

    return refuse


def _is_checked(name: str) -> bool:
    return name == "grpc-timeout" or name.endswith("-bin")


def _check(headers: Headers) -> Headers:
    """Check what grpclib reads off the headers of a call, and give them as it can read them.

    Raises:
        InvalidArgument: they cannot be.
    """
    checked = headers
    for name, value in headers:
        if name == "grpc-timeout":
            found = _TIMEOUT.fullmatch(value)
            if found is None:
                raise InvalidArgument("grpc-timeout", f"{value[:20]!r} is not at most eight digits and one of HMSmun")
            if found[2] in "un" or int(found[1]) == 0:
                checked = [(other, _SHORTEST_TIMEOUT if other == name else text) for other, text in checked]
        elif name.endswith("-bin"):
            try:
                decode_metadata([(name, value)])
            except ValueError as error:
                raise InvalidArgument(name[:100], "is not base64, as binary metadata is") from error
    return checked


class _Events(EventsProcessor):
    """What a connection does with what h2 tells of it."""

    def process(self, event: H2Event) -> None:
        processors: Mapping[type[H2Event], object] | None = getattr(self, "processors", None)
        if processors is not None and type(event) not in processors:
            return
        if isinstance(event, DataReceived) and not event.flow_controlled_length:
            return
        super().process(event)


class StrictProtocol(H2Protocol):
    """One connection, of a peer that may send anything."""

    _unread_bytes = 0

    def __init__(self, handler: Handler, config: Configuration) -> None:
        super().__init__(handler, config, H2_CONFIGURATION)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._peer = transport
        self.processor = _Events(self.handler, self.connection)

    def data_received(self, data: bytes) -> None:
        waiting = self._peer.get_write_buffer_size()
        super().data_received(data)
        if self._peer.is_closing():
            return
        if not self.connection.write_ready.is_set():
            self._unread_bytes += self._peer.get_write_buffer_size() - waiting
            if self._unread_bytes > _MAX_UNREAD_BYTES:
                self._peer.abort()
                return
        self._check_announced()

    def resume_writing(self) -> None:
        self._unread_bytes = 0
        super().resume_writing()

    def _check_announced(self) -> None:
        h2 = self.connection._connection
        waiting = h2.incoming_buffer._data
        if len(waiting) >= _HEAD_BYTES and int.from_bytes(waiting[:3]) > h2.max_inbound_frame_size:
            h2.close_connection(ErrorCodes.FRAME_SIZE_ERROR)
            self.connection.flush()
            self.processor.close("Frame too long")
