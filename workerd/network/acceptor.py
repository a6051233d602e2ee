"""Taking connections off the listening socket, until they have proved whose they are.

asyncio's servers begin a TLS handshake with whoever connects, any number of them. Here only so many are under way: one
more ends the oldest of the address that has most of them, so that those who connect and say nothing push each other
out, and whoever does speak is done before their turn comes. Each socket is counted until it is closed, whatever state
its connection is in.
"""

import asyncio
import os
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from workerd.limits import Meter
from workerd.notices import Notices

_AT_ONCE = 32  # then others have their turn
_PAUSE_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class _Handshake:
    """One that is under way: with which address, and whether asyncio has taken the connection over."""

    address: str
    connection: socket.socket
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
        self._handshakes: dict[asyncio.Task[None], _Handshake] = {}  # the oldest first
        self._by_address: Counter[str] = Counter()
        self._resuming: asyncio.TimerHandle | None = None
        self._open: set[_Handshake] = set()  # also of connections whose handshake is done
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more, and end the handshakes."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._listening.fileno())
        for task in [*self._handshakes]:
            self._end(task)

    async def wait_closed(self) -> None:
        """Wait for nothing: what is left of handshakes is the loop's."""

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._begin(connection, address[0])

    def _begin(self, connection: socket.socket, address: str) -> None:
        limits = self._meter.limits
        if not self._meter.has_room() or 0 < limits.max_connections <= len(self._open) - limits.max_handshakes:
            connection.close()
            self._notices.warn("connections are closed: there are as many as may be", "max-connections")
            return
        if len(self._handshakes) >= limits.max_handshakes:
            self._notices.warn("handshakes are ended: there are more than may be", "max-handshakes", latest=address)
            self._end_one()
        connection.setblocking(False)
        handshake = _Handshake(address, connection)
        task = self._loop.create_task(self._shake_hands(handshake))
        self._handshakes[task] = handshake
        self._open.add(handshake)
        self._by_address[address] += 1
        task.add_done_callback(self._forget)

    async def _shake_hands(self, handshake: _Handshake) -> None:
        handshake.begun = True
        seconds, is_made = self._meter.limits.handshake_seconds, False
        make_protocol = partial(self._make_protocol, partial(self._open.discard, handshake))
        try:
            await self._loop.connect_accepted_socket(
                make_protocol, handshake.connection, ssl=self._context, ssl_handshake_timeout=seconds
            )
            is_made = True
        except ConnectionAbortedError:  # what a handshake ends with that took too long
            what = "connections are closed: their handshake took too long"
            self._notices.warn(what, "handshake-seconds", latest=handshake.address)
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
        self._end(next(task for task, handshake in self._handshakes.items() if handshake.address == most))

    def _end(self, task: asyncio.Task[None]) -> None:
        handshake = self._handshakes[task]
        self._forget(task)
        task.cancel()
        if not handshake.begun:  # nor will it be
            handshake.connection.close()
            self._open.discard(handshake)

    def _forget(self, task: asyncio.Task[None]) -> None:
        if (handshake := self._handshakes.pop(task, None)) is None:
            return
        self._by_address[handshake.address] -= 1
        if not self._by_address[handshake.address]:
            del self._by_address[handshake.address]
        if task.done() and not task.cancelled():
            task.result()

    def _pause(self, error: OSError) -> None:
        """Accept no connection for a moment: the machine lacks memory or descriptors (accept(2))."""
        self._notices.warn("connections are left waiting", os.strerror(error.errno or 0))
        self._loop.remove_reader(self._listening.fileno())
        self._resuming = self._loop.call_later(
            _PAUSE_SECONDS, self._loop.add_reader, self._listening.fileno(), self._accept
        )
