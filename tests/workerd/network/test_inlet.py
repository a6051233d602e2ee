"""How what comes over connections is taken in pieces."""

import asyncio
import time
from dataclasses import dataclass, field

from workerd.network.inlet import Inlet


@dataclass(eq=False)
class Connection:
    """One whose every piece takes some time, in seconds."""

    seconds: float = 0.0
    taken: list[bytes] = field(default_factory=list)
    paused: int = 0
    resumed: int = 0

    def take(self, data: bytes) -> None:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        self.taken.append(data)

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None:
        self.resumed += 1

    @property
    def data(self) -> bytes:
        return b"".join(self.taken)


async def _drain(*connections: Connection) -> None:
    async with asyncio.timeout(10):
        while any(each.paused > each.resumed for each in connections):
            await asyncio.sleep(0)


async def test_what_is_soon_taken_is_taken_at_once() -> None:
    inlet, connection = Inlet(), Connection()
    inlet.receive(connection, b"a call")
    assert (connection.data, connection.paused) == (b"a call", 0)


async def test_much_is_taken_in_order_and_leaves_others_a_turn_meanwhile() -> None:
    inlet, connection = Inlet(), Connection(0.002)
    data = bytes(number % 251 for number in range(10_000))
    inlet.receive(connection, data)
    assert (len(connection.taken), connection.paused) == (1, 1)
    turns = 0
    async with asyncio.timeout(10):
        while connection.data != data:
            await asyncio.sleep(0)
            turns += 1
    assert turns >= len(connection.taken) - 1
    await _drain(connection)
    assert connection.resumed == 1


async def test_connections_of_a_user_share_its_time() -> None:
    inlet, connections = Inlet(), [Connection(0.002) for _ in range(20)]
    for connection in connections:
        inlet.receive(connection, bytes(1000))
    assert sum(len(each.taken) for each in connections) == 1
    await asyncio.sleep(0)
    assert sum(len(each.taken) for each in connections) <= 3
    await _drain(*connections)
    assert {len(each.data) for each in connections} == {1000}


async def test_what_comes_before_a_pause_has_effect_is_kept_in_order() -> None:
    inlet, connection = Inlet(), Connection(0.002)
    inlet.receive(connection, b"a" * 2000)
    inlet.receive(connection, b"b" * 2000)
    await _drain(connection)
    assert connection.data == b"a" * 2000 + b"b" * 2000


async def test_nothing_is_taken_for_a_connection_that_is_closed() -> None:
    inlet, closed, other = Inlet(), Connection(0.002), Connection(0.002)
    inlet.receive(closed, bytes(2000))
    inlet.receive(other, bytes(2000))
    inlet.forget(closed)
    taken = len(closed.taken)
    await _drain(other)
    assert (len(closed.taken), closed.resumed) == (taken, 0)


async def test_a_connection_that_fails_keeps_no_other_from_being_taken() -> None:
    inlet, other = Inlet(), Connection(0.002)

    class Failing(Connection):
        def take(self, data: bytes) -> None:
            super().take(data)
            if len(self.taken) > 1:
                raise RuntimeError("a fault")

    failing, complaints = Failing(0.002), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    inlet.receive(failing, bytes(2000))
    inlet.receive(other, bytes(2000))
    await _drain(other)
    assert len(other.data) == 2000
    assert [str(each) for each in complaints] == ["a fault"]
