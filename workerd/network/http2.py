"""What comes over a connection before it is a call, and what grpclib and h2 would let through or fall over.

- Malformed headers: grpclib has h2 pass them all, and fails on what it misses without any answer. They end the
  connection (RFC 9113 §8.1.1).
- Headers that are too long: h2 ends the connection for them. Their call is refused (`workerd.network.headers`).
- Metadata that is not ASCII: gRPC does not allow a call to fail for it.
- Compressed requests: grpclib hides the header that names the compression, and does not send the accepted ones.
- Other methods than POST: grpclib does not send the allowed ones.
- Frames of unknown kinds: h2 tells of them, and grpclib fails on being told. They are passed over (RFC 9113 §5.5).
- DATA frames without data: grpclib takes one for the end of the request, and keeps them when nobody reads.
- Calls that are too many, known or not, or that come while the answers before them are not read: grpclib keeps a task
  for each. They are reset.
- Requests without end: grpclib keeps all that arrives until a call is over (`workerd.network.request_buffer`).
- Writing to a connection that is lost: grpclib does so for every call under way, and asyncio logs each time.
- Invalid time limits and binary metadata: grpclib fails on them without any answer. One that is over before the
  call is looked at, it logs as a fault of the server's.
"""

import asyncio
import contextlib
import functools
import re
from asyncio import Transport
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from grpclib.config import Configuration
from grpclib.const import Handler as Method
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import EventsProcessor, H2Protocol
from grpclib.protocol import Stream as RawStream
from grpclib.server import Handler, Stream, request_handler
from h2.config import H2Configuration
from h2.errors import ErrorCodes
from h2.events import DataReceived
from h2.events import Event as H2Event

from workerd.engine.errors import InvalidArgument
from workerd.errors import LimitReached, to_grpc
from workerd.limits import Meter
from workerd.network.headers import (
    CONTENT_TYPE,
    ENCODING,
    TIMEOUT,
    HeaderDecoder,
    HeaderEncoder,
    TooLong,
    is_invalid_binary,
)
from workerd.network.request_buffer import RequestBuffer
from workerd.notices import Notices

_ACCEPTED = ("grpc-accept-encoding", "identity")
_GRPC = re.compile(r"application/grpc(\+proto)?[ \t]*(;.*)?", re.IGNORECASE)  # with parameters (RFC 9110 §8.3.1)
_TIMEOUT_VALUE = re.compile(r"([0-9]{1,8})([HMSmun])")  # gRPC over HTTP2, Requests
_UNIT_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_SHOWN = 100
_MOST_UNREAD_CALLS = 100  # on one connection: a peer on a slow line may stop what it reads

Function = Callable[[Stream[Any, Any]], Awaitable[None]]
Headers = list[tuple[str, str]]

H2_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding="latin-1",  # it takes any byte: h2 fails on headers that are not of the encoding
    validate_inbound_headers=True,
    validate_outbound_headers=False,
    normalize_inbound_headers=False,
    normalize_outbound_headers=False,
)


class Calls(Handler):
    """Answers the calls of a connection. Calls with invalid headers are answered with an error that names the fault.

    A call that is over is forgotten at once, with all that it holds. grpclib keeps it until more calls come.

    Args:
        meter: counts the calls, from their headers to their end.
        notices: logs limits that are met.
        on_end: called when the connection is closed and its last call is over.

    Attributes:
        user_id: whose connection it is.
    """

    def __init__(
        self, *arguments: Any, meter: Meter, notices: Notices, on_end: Callable[["Calls"], None] = lambda _: None
    ) -> None:
        super().__init__(*arguments)
        self._meter = meter
        self._notices = notices
        self._on_end = on_end
        self._unread_calls = 0
        self.user_id = ""

    def accept(self, stream: RawStream, headers: Any, release_stream: Callable[[], Any]) -> None:
        """Answer a call, or reset its stream if there are too many."""
        if not self._may_begin(stream):
            if stream.closable:  # the peer may have reset it in the same read
                stream.reset_nowait(ErrorCodes.ENHANCE_YOUR_CALM)
            release_stream()
            return
        method = self.mapping.get(dict(headers).get(":path", ""))
        is_single = method is None or not method.cardinality.client_streaming
        stream.buffer = RequestBuffer(stream, is_single=is_single)  # type: ignore[assignment]
        mapping, left = self.mapping, headers
        stream.headers = headers  # for `encoding_of`
        if encoding_of(stream) != _ACCEPTED[1]:  # doc/compression.md of gRPC
            _add_to_answer(stream, _ACCEPTED)
        if (":method", "POST") not in headers:  # RFC 9110 §15.5.6
            _add_to_answer(stream, ("allow", "POST"))
        try:
            seconds = _check(headers)
        except (InvalidArgument, LimitReached) as error:
            if isinstance(error, LimitReached):
                self._notices.warn("calls are turned away", error.limit, latest=str(error))
            mapping = _Altered(self.mapping, _refuse(error))
            left = [(name, value) for name, value in headers if not name.endswith("-bin")]
        else:
            if seconds is not None:
                mapping = _Altered(self.mapping, _limit(seconds))
        left = [(name, _simplify(name, value)) for name, value in left if name != TIMEOUT]
        task = self._tasks[stream] = self.loop.create_task(
            request_handler(mapping, stream, left, self.codec, self.status_details_codec, self.dispatch, _release_later)
        )
        task.add_done_callback(functools.partial(self._forget, stream, self.user_id, release_stream))

    def close(self) -> None:
        """End all calls: the connection is closed."""
        super().close()
        self._end_if_over()

    def _may_begin(self, stream: RawStream) -> bool:
        """Count a call until `_forget`, unless there are too many."""
        self._unread_calls = 0 if stream.connection.write_ready.is_set() else self._unread_calls + 1
        if self._unread_calls <= _MOST_UNREAD_CALLS and self._meter.begin_call(self.user_id):
            return True
        self._notices.warn("streams are reset: too many calls are not over", "calls", latest=self.user_id)
        return False

    def _forget(
        self, stream: RawStream, user_id: str, release_stream: Callable[[], Any], task: asyncio.Task[None]
    ) -> None:
        self._meter.end_call(user_id)
        release_stream()
        self._tasks.pop(stream, None)
        self._cancelled.discard(task)
        if task.cancelled():
            with contextlib.suppress(asyncio.CancelledError):
                task.exception()  # which takes it off the task: it keeps alive all that the call held
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self.closing and not self._tasks and not self._cancelled:
            self.loop.call_soon(self._on_end, self)


def _release_later() -> None:
    """Leave the stream to `Calls._forget`, which is also called for a task that was cancelled before it began."""


def encoding_of(stream: RawStream) -> str:
    """Return the encoding of the compressed messages of a call."""
    return next((value for name, value in stream.headers or () if name == ENCODING), _ACCEPTED[1])


def _add_to_answer(stream: RawStream, header: tuple[str, str]) -> None:
    """Add a header to the first headers of a call's answer, where grpclib sends only its own."""
    send_headers = stream.send_headers

    @functools.wraps(send_headers)
    async def send(headers: Headers, end_stream: bool = False) -> None:
        is_first = any(name == ":status" for name, _ in headers)
        await send_headers([*headers, header] if is_first else headers, end_stream)

    stream.send_headers = send  # type: ignore[method-assign]


def _simplify(name: str, value: str) -> str:
    """Return a header's value in the form that grpclib knows: it compares content types as text."""
    return "application/grpc" if name == CONTENT_TYPE and _GRPC.fullmatch(value) else value


class _Altered(dict[str, Method]):
    """Routes to functions that are altered."""

    def __init__(self, routes: Mapping[str, Method], alter: Callable[[Function], Function]) -> None:
        super().__init__()
        self._routes = routes
        self._alter = alter

    def get(self, path: str, default: Any = None) -> Any:
        method = self._routes.get(path, default)
        return None if method is None else method._replace(func=self._alter(method.func))


def _refuse(error: Exception) -> Callable[[Function], Function]:
    async def refuse(stream: Stream[Any, Any]) -> None:
        del stream
        raise to_grpc(error)

    return lambda _: refuse


def _limit(seconds: float) -> Callable[[Function], Function]:
    def alter(function: Function) -> Function:
        async def serve(stream: Stream[Any, Any]) -> None:
            limit = asyncio.timeout(seconds)
            try:
                async with limit:
                    await function(stream)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise GRPCError(Status.DEADLINE_EXCEEDED, f"the call was not over after {seconds:g} s") from error

        return serve

    return alter


def _check(headers: Headers) -> float | None:
    """Check what grpclib reads off the headers of a call.

    Returns:
        How long the call may take, in seconds; None for any time.

    Raises:
        InvalidArgument: a header has an impossible value.
        LimitReached: they are too long.
    """
    limits = []
    for header in headers:
        name, value = header
        if isinstance(header, TooLong):
            advice = f"send less metadata, {value} bytes at most"
            raise LimitReached("max-header-bytes", f"the call has {name} bytes of headers", advice)
        if name == TIMEOUT:
            found = _TIMEOUT_VALUE.fullmatch(value)
            if found is None:
                raise InvalidArgument(name, f"{value[:_SHOWN]!r} is not at most eight digits and one of HMSmun")
            limits.append(int(found[1]) * _UNIT_SECONDS[found[2]])
        elif is_invalid_binary(name, value):
            raise InvalidArgument(name[:_SHOWN], "is not base64, as binary metadata is")
    return min(limits, default=None)


class _Events(EventsProcessor):
    """What a connection does with what h2 tells of it."""

    def process(self, event: H2Event) -> None:
        """Do it, unless it is nothing that a call is made of."""
        processors: Mapping[type[H2Event], object] | None = getattr(self, "processors", None)
        if processors is not None and type(event) not in processors:
            return
        if isinstance(event, DataReceived) and not event.flow_controlled_length:
            return
        super().process(event)


class OpenTransport:
    """What grpclib uses of a transport. Data that is written once it is closing is dropped."""

    def __init__(self, transport: Transport) -> None:
        self._write = transport.write
        self.is_closing = transport.is_closing
        self.close = transport.close
        self.get_extra_info = transport.get_extra_info

    def write(self, data: bytes) -> None:
        """Send data."""
        if not self.is_closing():
            self._write(data)


class StrictProtocol(H2Protocol):
    """One connection, of a peer that may send anything."""

    def __init__(self, handler: Handler, config: Configuration) -> None:
        super().__init__(handler, config, H2_CONFIGURATION)

    def connection_made(self, transport: Any) -> None:
        """Begin."""
        super().connection_made(OpenTransport(transport))  # type: ignore[arg-type]
        h2 = self.connection._connection
        h2.decoder, h2.encoder = HeaderDecoder(), HeaderEncoder()
        self.processor = _Events(self.handler, self.connection)
