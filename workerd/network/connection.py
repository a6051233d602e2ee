"""One connection, which is closed when its peer is dead, idle, one too many or a flood, or its certificate invalid.

- A peer that vanished without a word is noticed, and one whose network keeps the connection and passes nothing on, for
  which TCP's own means (tcp(7), SO_KEEPALIVE and TCP_USER_TIMEOUT) are blind: whatever stands between answers them.
  grpclib's PINGs (`grpclib.protocol.Connection._ping`) end with a polite close, which waits for the peer that has gone,
  and leave the connection's calls as they are until then.
- A peer that makes work without making calls is cut off: one that resets what it opens (CVE-2023-44487), that sends
  frames which carry nothing (RFC 9113 §10.5), or that leaves unread what it has the daemon answer. Frames are counted
  before h2 takes them: a read may bring thousands.
- A peer whose certificate is revoked or has expired is cut off, after its calls were answered with the reason.
- What ends a connection is said in a GOAWAY, which grpclib leaves unsent when a peer breaks the protocol.
- A frame that says it is too long is refused at once: h2 first waits for all of it (`FrameBuffer.__next__`).
"""

import asyncio
import contextlib
from asyncio import BaseTransport, Transport
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakValueDictionary

from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import DenialOfServiceError, FrameTooLargeError, ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, HeadersFrame, RstStreamFrame

from pki.errors import CertificateRefused, IdentityInvalid
from pki.identity import Identity
from workerd.errors import LimitReached
from workerd.limits import Meter
from workerd.network.headers import drop_unused
from workerd.network.http2 import Calls, StrictProtocol
from workerd.network.inlet import Inlet
from workerd.notices import Notices

_TURNS = 4
# Calls on one connection at a time: a client waits with the next (RFC 9113 §5.1.2), which may be a stop. h2 says 100.
_MAX_STREAMS = 1000
_PING = b"workerd\0"  # any eight bytes (RFC 9113 §6.7)
_FRAME_HEADER_BYTES = 9  # RFC 9113 §4.1
# A call, and so many bytes in either direction, make up for as many frames that carry nothing.
_FRAMES_PER_CALL = 8.0
_BYTES_PER_FRAME = 1024
_MOST_UNREAD_FRAMES = 1000
_CLOSE_SECONDS, _FLOOD_SECONDS = 2.0, 0.1


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all connections have in common.

    Attributes:
        keepalive_seconds: after how much silence a connection is dead; greater than zero.
        meter: counts what users have under way.
        notices: tells what connections are ended for.
        identify: `Credentials.identify`.
        watch: `Credentials.watch`.
        inlets: of the users who have connections, by id.
    """

    keepalive_seconds: float
    meter: Meter
    notices: Notices
    identify: Callable[[Mapping[str, Any]], Identity]
    watch: Callable[[Identity, Callable[[CertificateRefused], None]], Callable[[], None]]
    inlets: WeakValueDictionary[str, Inlet] = field(default_factory=WeakValueDictionary)


class WorkerProtocol(StrictProtocol):
    """One connection.

    Attributes:
        around: what all connections have in common.
        on_lost: called when the connection is closed.

    When nothing at all has come for two quarters of `keepalive_seconds` in a row, it sends a PING; after two more, the
    connection is dead and its calls end. A reader that is slow with its output is not: PINGs pass it by (RFC 9113
    §5.2.1), and its own come meanwhile. Turns are counted, not seconds: who was stopped itself has not waited.

    Turns are counted, too, for `idle_seconds`, after four quarters of which without a call it is closed.
    """

    around: Surroundings
    on_lost: Callable[[], None]
    _user_id: str | None = None
    _silent_turns = 0
    _idle_turns = 0
    _streams_seen = 0
    _unread_frames = 0
    _sent_seen = 0
    _idle_turn: asyncio.TimerHandle | None = None
    _ending: asyncio.Task[None] | None = None
    _unwatch: Callable[[], None] | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin to bound what comes, count the connection in, and close it if it is one too many."""
        self._transport = cast("Transport", transport)
        super().connection_made(transport)
        limits = self.around.meter.limits
        self.connection.feed = self._feed  # type: ignore[method-assign]
        h2 = self.connection._connection
        self._take_frame = h2._receive_frame
        h2._receive_frame = self._meter_frame  # type: ignore[method-assign]
        h2.update_settings(
            {
                SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
            }
        )
        h2.decoder.max_header_list_size = limits.max_header_bytes  # at once: who acknowledges nothing gets no more
        self.connection.flush()
        self._arm()
        if limits.idle_seconds:
            self._arm_idle()
        self._count_in()
        self._inlet = self.around.inlets.setdefault(self._user_id or "", Inlet())

    def data_received(self, data: bytes) -> None:
        """Take what has arrived, now or in a later round of the event loop."""
        self._silent_turns = 0
        self._inlet.receive(self, data)

    def take(self, data: bytes) -> None:
        """Take a part of what has arrived."""
        self._silent_turns = 0
        if self._transport.is_closing():  # what still comes then is for nobody
            return
        try:
            super().data_received(data)
        except BaseException:  # the bytes after it cannot be parsed without it
            self._transport.abort()
            raise

    def pause(self) -> None:
        """Read no more, until `resume`."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def resume_writing(self) -> None:
        """Go on to send: the peer reads."""
        self._unread_frames = 0
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what was begun."""
        self._inlet.forget(self)
        self._turn.cancel()
        if self._idle_turn is not None:
            self._idle_turn.cancel()
        if self._ending is not None:
            self._ending.cancel()
        if self._unwatch is not None:
            self._unwatch()
        if self._user_id is not None:
            self.around.meter.disconnect(self._user_id)
        self.on_lost()
        super().connection_lost(exc)

    def _count_in(self) -> None:
        identity, user_id = None, ""  # all whose certificate names no user count as one; the gate refuses their calls
        with contextlib.suppress(IdentityInvalid):
            identity = self.around.identify(self.connection.get_peer().cert() or {})
            user_id = identity.user_id
        cast("Calls", self.handler).user_id = user_id
        try:
            self.around.meter.connect(user_id)
        except LimitReached as refusal:
            self.around.notices.warn("connections are closed: there are too many", refusal.limit, latest=user_id)
            if self.around.meter.may_be_told(user_id):
                self._end(ErrorCodes.ENHANCE_YOUR_CALM, str(refusal))
            else:
                self._transport.abort()
            return
        self._user_id = user_id
        if identity is not None:
            self._unwatch = self.around.watch(identity, self._refuse)

    def _refuse(self, refusal: CertificateRefused) -> None:
        self._ending = asyncio.get_running_loop().create_task(self._end_refused(str(refusal)))

    async def _end_refused(self, reason: str) -> None:
        """Close the connection after its calls were answered: `Gate` ends those that are under way.

        If no call was made yet, the first is waited for. The handshake succeeds for a narrowed certificate of which
        only an ancestor is revoked, and the answer tells its user why it is refused.
        """
        closed = self.connection.stream_close_waiter
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                if not self.connection.streams_started:
                    closed.clear()
                    await closed.wait()
                streams = set(self.processor.streams)  # not those that begin later
                while not streams.isdisjoint(self.processor.streams):
                    closed.clear()
                    await closed.wait()
        if not self._transport.is_closing():
            self._end(ErrorCodes.NO_ERROR, reason)

    def _feed(self, data: bytes) -> list[Event]:
        h2 = self.connection._connection
        try:
            events = h2.receive_data(data)
            held = h2.incoming_buffer._data
            if len(held) >= _FRAME_HEADER_BYTES and int.from_bytes(held[:3]) > h2.max_inbound_frame_size:
                h2.close_connection(ErrorCodes.FRAME_SIZE_ERROR)
                raise FrameTooLargeError("a frame says that it is longer than may be")
            ours = sum(isinstance(event, StreamReset) and not event.remote_reset for event in events)
            if not all(self._may_reset() for _ in range(ours)):
                h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
                raise DenialOfServiceError("too many streams were reset")
        except ProtocolError as error:
            if isinstance(error, DenialOfServiceError):
                what = "connections are closed: what came over them is a flood"
                self.around.notices.warn(what, "flood", latest=self._user_id, problem=str(error))
            self.connection.flush()  # the GOAWAY
            self._bound_close(_FLOOD_SECONDS)  # until then asyncio reads what still comes, to find the end of it
            raise
        return events

    def _meter_frame(self, frame: Frame) -> list[Event]:
        """Count a frame before h2 takes it.

        Raises:
            DenialOfServiceError: it is one too many; h2 ends the connection.
        """
        match frame:
            case HeadersFrame():
                cost = -_FRAMES_PER_CALL
            case DataFrame():
                cost = 1 - len(frame.data) / _BYTES_PER_FRAME
            case _:
                cost = 1.0
        if isinstance(frame, RstStreamFrame) and not self._may_reset():
            raise DenialOfServiceError("streams are opened and reset")
        sent = self.connection.data_sent
        cost -= (sent - self._sent_seen) / _BYTES_PER_FRAME  # which a peer acknowledges
        self._sent_seen = sent
        if not self.around.meter.may_send(self._user_id or "", cost):
            raise DenialOfServiceError("frames carry nothing")
        if not self.connection.write_ready.is_set():
            self._unread_frames += 1
            if self._unread_frames > _MOST_UNREAD_FRAMES:
                self._transport.abort()
                raise DenialOfServiceError("answers are not read")
        return drop_unused(self._take_frame(frame))

    def _may_reset(self) -> bool:
        return self.around.meter.may_reset(self._user_id or "")

    def _end(self, code: ErrorCodes, reason: str = "") -> None:
        """Close the connection politely: tell why, and let what was sent arrive."""
        self.connection._connection.close_connection(code, additional_data=reason.encode())
        self.connection.flush()
        self._bound_close(_CLOSE_SECONDS)
        self.processor.close(reason)

    def _bound_close(self, seconds: float) -> None:
        """Have the connection closed, soon, whether or not the peer goes along."""
        asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def _arm(self) -> None:
        seconds = self.around.keepalive_seconds / _TURNS
        self._turn = asyncio.get_running_loop().call_later(seconds, self._take_turn)

    def _take_turn(self) -> None:
        self._silent_turns += 1
        if self._silent_turns == _TURNS:
            self._transport.abort()
            return
        if self._silent_turns == _TURNS // 2 and not self._transport.is_closing():
            self.connection._connection.ping(_PING)
            self.connection.flush()
        self._arm()

    def _arm_idle(self) -> None:
        seconds = self.around.meter.limits.idle_seconds / _TURNS
        self._idle_turn = asyncio.get_running_loop().call_later(seconds, self._take_idle_turn)

    def _take_idle_turn(self) -> None:
        started = self.connection.streams_started
        quiet = not self.processor.streams and started == self._streams_seen
        self._streams_seen = started
        self._idle_turns = self._idle_turns + 1 if quiet else 0
        if self._transport.is_closing():
            return
        if self._idle_turns == _TURNS:
            self._end(ErrorCodes.NO_ERROR, "no call was made for long enough")
            return
        self._arm_idle()
