"""A proxy on loopback that harms the connections that go through it: cuts them, resets them, or keeps them in silence.

It knows bytes and nothing of TLS: counts are of what passes on the wire, handshakes included. It runs in a thread of
its own, so that synchronous and asynchronous tests use it alike, and it closes only sockets of its own. A connection
that finds nobody listening behind the proxy is closed at once.

Example:
    with Proxy(daemon_port) as proxy:
        proxy.plan(Fault("cut", 2000, "down"))  # the next connection dies after 2000 bytes to the client
        target = Target(proxy.endpoint, ...)
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar

T = TypeVar("T")
Direction = Literal["up", "down"]

_PIECE = 2**16
_WAIT_SECONDS = 30.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER with no time: close() sends RST


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one connection.

    Attributes:
        kind: `cut` closes both sides in order (FIN), `reset` closes them with RST, `stall` keeps both open and passes
            nothing on any more, in neither direction, not even that a side has closed.
        after_bytes: how many bytes pass before; the bytes up to there arrive.
        direction: of which bytes: `up` go to the daemon, `down` to the client.
    """

    kind: Literal["cut", "reset", "stall"]
    after_bytes: int = 0
    direction: Direction = "down"


@dataclass(slots=True, eq=False)
class Connection:
    """One connection through the proxy.

    Attributes:
        fault: what is to befall it; None when nothing is, or it has happened.
        passed: how many bytes went in each direction so far.
        open: whether the proxy still holds its two sockets.
    """

    fault: Fault | None = None
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    open: bool = True
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None
    _reset: bool = False

    def _allowed(self, direction: Direction) -> int:
        """How many bytes may pass in a direction now."""
        if self.fault is None or self.fault.direction != direction:
            return _PIECE
        return min(_PIECE, self.fault.after_bytes - self.passed[direction])


class Proxy:
    """Listens on a free loopback port and passes everything on to another. A context manager.

    Args:
        port: the port on loopback to pass on to; may be changed at any time through `port_behind`, for connections
            that come after.

    Attributes:
        port: where it listens.
        endpoint: the same as `https://localhost:PORT`.
        connections: every connection so far, in the order in which they came.
    """

    def __init__(self, port: int) -> None:
        self.port_behind = port
        self.connections: list[Connection] = []
        self._plan: deque[Fault | None] = deque()
        self._otherwise: Fault | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self.endpoint = f"https://localhost:{self.port}"
        self._thread.start()
        self._accepting = asyncio.run_coroutine_threadsafe(self._accept(), self._loop)
        return self

    def __exit__(self, *_: object) -> None:
        self._accepting.cancel()
        self._do(self._end(reset=False))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_SECONDS)
        self._loop.close()
        self._listening.close()

    def plan(self, *faults: Fault | None) -> None:
        """Say what befalls the next connections, one each; None is nothing. What was planned before comes first."""
        self._plan.extend(faults)

    def otherwise(self, fault: Fault | None) -> None:
        """Say what befalls every connection for which nothing is planned."""
        self._otherwise = fault

    def cut(self, *, reset: bool = False) -> None:
        """Close all connections now, and return when they are closed."""
        self._do(self._end(reset=reset))

    def stall(self) -> None:
        """Pass nothing on any more on the connections that are open now; new ones are not concerned."""
        self._do(self._set_flowing(False))

    def resume(self) -> None:
        """Let stalled connections go on."""
        self._do(self._set_flowing(True))

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_WAIT_SECONDS)

    async def _end(self, *, reset: bool) -> None:
        tasks = [connection._task for connection in self.connections if connection._task is not None]
        for connection in self.connections:
            connection._reset = connection._reset or reset
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _set_flowing(self, flowing: bool) -> None:
        for connection in self.connections:
            (connection._flowing.set if flowing else connection._flowing.clear)()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listening)
            connection = Connection(self._plan.popleft() if self._plan else self._otherwise)
            connection._flowing.set()
            connection._task = self._loop.create_task(self._serve(connection, client))
            self.connections.append(connection)

    async def _serve(self, connection: Connection, client: socket.socket) -> None:
        daemon = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        daemon.setblocking(False)
        try:
            await self._loop.sock_connect(daemon, ("127.0.0.1", self.port_behind))
            pumps = [
                self._loop.create_task(self._pump(connection, client, daemon, "up")),
                self._loop.create_task(self._pump(connection, daemon, client, "down")),
            ]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except (OSError, _FaultReached):
            pass  # the end of one side is the end of the other
        finally:
            for side in (client, daemon):
                with contextlib.suppress(OSError):
                    if connection._reset:
                        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    else:  # a close() with bytes unread sends RST (RFC 2525 §2.17): FIN comes first
                        side.shutdown(socket.SHUT_WR)
                side.close()
            connection.open = False

    async def _pump(
        self, connection: Connection, source: socket.socket, sink: socket.socket, direction: Direction
    ) -> None:
        while True:
            await connection._flowing.wait()
            allowed = connection._allowed(direction)
            if allowed <= 0:
                await self._befall(connection)
                continue
            data = await self._loop.sock_recv(source, allowed)
            await connection._flowing.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            await self._loop.sock_sendall(sink, data)
            connection.passed[direction] += len(data)

    async def _befall(self, connection: Connection) -> None:
        """Let the fault of a connection happen; afterwards it has none."""
        fault, connection.fault = connection.fault, None
        if fault is not None and fault.kind == "stall":
            connection._flowing.clear()
        elif fault is not None:
            connection._reset = fault.kind == "reset"
            raise _FaultReached


class _FaultReached(Exception):
    """A connection has come to its planned end."""
