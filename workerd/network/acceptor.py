"""Taking connections off the listening socket, until they have proved whose they are.

asyncio's servers begin a TLS handshake with whoever connects, any number of them. Here only so many are under way: one
more ends the oldest of the address that has most of them, so that those who connect and say nothing push each other
out, and whoever does speak is done before their turn comes. Each socket is counted until it is closed, whatever state
its connection is in.

TLS begins when the first bytes have arrived, for a few connections in a round of the event loop. So connections without
any, or that are closed before their turn, cost little, and calls are answered between handshakes. While connections
wait for their turn no more are accepted: later ones stay in the kernel's queue, where otherwise the oldest would be
ended here unserved.
"""

import asyncio
import os
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from workerd.limits import Meter
from workerd.notices import Notices

_ACCEPTED_PER_ROUND = 32
_BEGUN_PER_ROUND = 2
_MOST_READY = 16
_LEFT = (7, 8)  # TCP_CLOSE and TCP_CLOSE_WAIT of <netinet/tcp.h>
_PAUSE_SECONDS = 1.0
_LEAST_SECONDS = 0.1  # which asyncio can be given


@dataclass(eq=False, slots=True)
class _Handshake:
    """A handshake that is under way, or waits for the first bytes.

    Attributes:
        address: of the peer.
        ends_at: when its time is over, in the loop's time.
        watched: whether the loop watches the connection for its first bytes.
        task: set once TLS begins.
        begun: whether asyncio has taken the connection over.
    """

    address: str
    connection: socket.socket
    ends_at: float
    watched: bool = False
    task: asyncio.Task[None] | None = None
    begun: bool = False


class Acceptor:
    """Accepts connections for as long as it is open. What grpclib takes for its server.

    Args:
        listening: the socket.
        context: of TLS.
        make_protocol: makes the protocol of a connection whose handshake begins. It takes a function that the protocol
            calls when the connection is closed.
        meter: tells the limits, and whether there is room for another connection.
        notices: tells which limits are met.
    """

    def __init__(
        self,
        listening: socket.socket,
        context: ssl.SSLContext,
        make_protocol: Callable[[Callable[[], None]], asyncio.Protocol],
        meter: Meter,
        notices: Notices,
    ) -> None:
        self._listening = listening
        self._context = context
        self._make_protocol = make_protocol
        self._meter = meter
        self._notices = notices
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[_Handshake, asyncio.TimerHandle] = {}  # the oldest first
        self._ready: deque[_Handshake] = deque()  # the first bytes of which have come
        self._next_round: asyncio.Handle | None = None
        self._by_address: Counter[str] = Counter()
        self._resuming: asyncio.TimerHandle | None = None
        self._open: set[_Handshake] = set()  # also of connections whose handshake is done
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and end the handshakes."""
        for handle in (self._resuming, self._next_round):
            if handle is not None:
                handle.cancel()
        self._loop.remove_reader(self._listening.fileno())
        for handshake in [*self._handshakes]:
            self._end(handshake)

    async def wait_closed(self) -> None:
        """Wait for nothing: what is left of handshakes is the loop's."""

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_PER_ROUND):
            if len(self._ready) >= _MOST_READY:
                return
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._take(connection, address[0])

    def _take(self, connection: socket.socket, address: str) -> None:
        limits = self._meter.limits
        if not self._meter.has_room() or 0 < limits.max_connections <= len(self._open) - limits.max_handshakes:
            connection.close()
            self._notices.warn("connections are closed: there are as many as may be", "max-connections")
            return
        if len(self._handshakes) >= limits.max_handshakes:
            self._notices.warn("handshakes are ended: there are more than may be", "max-handshakes", latest=address)
            self._end_one()
        connection.setblocking(False)
        handshake = _Handshake(address, connection, self._loop.time() + limits.handshake_seconds)
        self._handshakes[handshake] = self._loop.call_at(handshake.ends_at, self._time_out, handshake)
        self._open.add(handshake)
        self._by_address[address] += 1
        self._look(handshake)

    def _look(self, handshake: _Handshake) -> None:
        """Look for the first bytes of a connection, and watch it until they come."""
        try:
            first = handshake.connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            if not handshake.watched:
                handshake.watched = True
                self._loop.add_reader(handshake.connection.fileno(), self._look, handshake)
            return
        except OSError:
            first = b""
        self._unwatch(handshake)
        if not first or _has_left(handshake.connection):
            self._end(handshake)
            return
        self._ready.append(handshake)
        if self._next_round is None:
            self._next_round = self._loop.call_soon(self._begin_some)

    def _unwatch(self, handshake: _Handshake) -> None:
        if handshake.watched:
            handshake.watched = False
            self._loop.remove_reader(handshake.connection.fileno())

    def _begin_some(self) -> None:
        self._next_round = None
        begun = 0
        try:
            while self._ready and begun < _BEGUN_PER_ROUND:
                handshake = self._ready.popleft()
                if _has_left(handshake.connection):
                    self._end(handshake)
                    continue
                begun += 1
                handshake.task = self._loop.create_task(self._shake_hands(handshake))
                handshake.task.add_done_callback(partial(self._finish, handshake))
        finally:  # also without memory for a task
            if self._ready:
                self._next_round = self._loop.call_soon(self._begin_some)

    async def _shake_hands(self, handshake: _Handshake) -> None:
        handshake.begun = True
        seconds, is_made = max(_LEAST_SECONDS, handshake.ends_at - self._loop.time()), False
        make_protocol = partial(self._make_protocol, partial(self._open.discard, handshake))
        try:
            await self._loop.connect_accepted_socket(
                make_protocol, handshake.connection, ssl=self._context, ssl_handshake_timeout=seconds
            )
            is_made = True
        except ConnectionAbortedError:  # what a handshake ends with that took too long
            self._warn_of_time(handshake)
        except MemoryError:
            handshake.connection.close()
            self._notices.warn("connections are closed: there is no memory left", "memory", latest=handshake.address)
        except OSError:  # who came had no certificate, or has gone; ssl.SSLError is one
            pass
        finally:
            if not is_made:
                self._open.discard(handshake)

    def _end_one(self) -> None:
        """End the oldest handshake of the address that has most of them."""
        [(most, _)] = self._by_address.most_common(1)
        self._end(next(handshake for handshake in self._handshakes if handshake.address == most))

    def _time_out(self, handshake: _Handshake) -> None:
        if handshake.task is None:  # otherwise asyncio ends it
            self._warn_of_time(handshake)
            self._end(handshake)

    def _warn_of_time(self, handshake: _Handshake) -> None:
        what = "connections are closed: their handshake took too long"
        self._notices.warn(what, "handshake-seconds", latest=handshake.address)

    def _end(self, handshake: _Handshake) -> None:
        self._forget(handshake)
        if handshake.task is not None:
            handshake.task.cancel()
        elif handshake in self._ready:
            self._ready.remove(handshake)
        if not handshake.begun:  # nor will it be
            self._unwatch(handshake)
            handshake.connection.close()
            self._open.discard(handshake)

    def _finish(self, handshake: _Handshake, task: asyncio.Task[None]) -> None:
        self._forget(handshake)
        if not task.cancelled():
            task.result()

    def _forget(self, handshake: _Handshake) -> None:
        if (timer := self._handshakes.pop(handshake, None)) is None:
            return
        timer.cancel()
        self._by_address[handshake.address] -= 1
        if not self._by_address[handshake.address]:
            del self._by_address[handshake.address]

    def _pause(self, error: OSError) -> None:
        """Accept no connection for a moment: the machine lacks memory or descriptors (accept(2))."""
        self._notices.warn("connections are left waiting", os.strerror(error.errno or 0))
        self._loop.remove_reader(self._listening.fileno())
        self._resuming = self._loop.call_later(
            _PAUSE_SECONDS, self._loop.add_reader, self._listening.fileno(), self._accept
        )


def _has_left(connection: socket.socket) -> bool:
    """Return whether the peer has closed a connection, even if something can still be read from it (tcp(7))."""
    [state] = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state in _LEFT
