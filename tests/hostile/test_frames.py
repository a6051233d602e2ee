"""Frames by the ten thousand, valid, mutated and random, over many connections, one after another."""

import asyncio
import os
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.hostile.attacker import Connection
from tests.hostile.frames import FrameSource, missing_bytes
from tests.hostile.witness import undisturbed
from workerctl.target import Target

_FRAMES = int(os.environ.get("WORKERD_HOSTILE_FRAMES", "100_000"))
ATTACKERS = tuple(f"mallory{number}" for number in range(64))
_AT_ONCE = 40
_THREADS = 6  # a connection that is ended takes its time to close, and not that of the others
_FILLING_BYTES = 1 << 17  # more than any frame that the daemon waits for; what is announced longer, it refuses
_MAX_GROWTH_BYTES = 60_000_000


@dataclass
class Sent:
    """What became of the frames.

    Attributes:
        taken: those of `frames` of which the daemon said, with the answer to a PING after them, that it had read them.
    """

    frames: int = 0
    taken: int = 0
    connections: int = 0

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(self.frames + other.frames, self.taken + other.taken, self.connections + other.connections)


def send_frames(target: Target, contexts: list[ssl.SSLContext], seed: int, count: int) -> Sent:
    """Send frames until so many are taken, each connection until the daemon closes it.

    Args:
        contexts: of several users, who take turns: the daemon bounds what one alone may send.

    Raises:
        TimeoutError: it neither answered nor closed.
    """
    source, sent = random.Random(seed), Sent()
    while sent.taken < count:
        sent.connections += 1
        frames = FrameSource(source)
        with Connection(target, contexts[sent.connections % len(contexts)]) as connection:
            connection.open()
            alive = True
            while alive and sent.taken < count:
                data = b"".join(frames.frame() for _ in range(_AT_ONCE))
                sent.frames += _AT_ONCE
                # A frame that lies about its length swallows those after it, and the PING should not be among them.
                filling = bytes(min(missing_bytes(data), _FILLING_BYTES))
                alive = connection.send(data + filling) and connection.is_alive(source.randbytes(8))
                sent.taken += _AT_ONCE * alive
    return sent


@pytest.mark.timeout(600)
async def test_the_daemon_takes_or_refuses_every_frame_and_serves_on(
    daemon: Daemon, tmp_path: Path, seed: int, note: Callable[[str], None]
) -> None:
    for attacker in ATTACKERS:
        daemon.pki.issue_client(attacker)
    target, contexts = daemon.target(), [daemon.target(attacker).tls() for attacker in ATTACKERS]
    began = time.monotonic()
    async with undisturbed(daemon, tmp_path) as watch:
        async with asyncio.TaskGroup() as tasks:
            share = -(-_FRAMES // _THREADS)
            seeds = random.Random(seed).sample(range(1 << 32), _THREADS)
            senders = [
                tasks.create_task(asyncio.to_thread(send_frames, target, contexts, each, share)) for each in seeds
            ]
        sent = sum((sender.result() for sender in senders), Sent())
    note(f"{sent} in {time.monotonic() - began:.0f} s, {watch}")
    assert sent.frames >= sent.taken >= _FRAMES
    assert watch.grown < _MAX_GROWTH_BYTES
