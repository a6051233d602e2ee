"""The listening socket."""

import contextlib
import fcntl
import select
import socket
import struct
import termios
from pathlib import Path

from tests.waiting import LIMIT_SECONDS
from workerd.listening import listen
from workerd.settings import Settings

_MOST_WAITING_BYTES = 128 << 10  # half of what uvloop reads at once
_ROUNDS = 200


def test_connection_holds_less_unread_than_one_read_of_the_event_loop(tmp_path: Path) -> None:
    settings = Settings("127.0.0.1", 0, tmp_path, tmp_path / "pki", tmp_path / "policies")
    with listen(settings) as listening, socket.create_connection(listening.getsockname(), LIMIT_SECONDS) as client:
        accepted, _ = listening.accept()
        with accepted:
            client.setblocking(False)
            for _ in range(_ROUNDS):  # the kernel lets more wait for who reads a lot
                with contextlib.suppress(BlockingIOError):
                    client.send(bytes(1 << 20))
                accepted.recv(1 << 20)
            while select.select([], [client], [], 0.5)[1]:
                with contextlib.suppress(BlockingIOError):
                    client.send(bytes(1 << 16))
            [waiting] = struct.unpack("i", fcntl.ioctl(accepted, termios.FIONREAD, bytes(4)))  # tcp(7), SIOCINQ
    assert 0 < waiting < _MOST_WAITING_BYTES
