"""Processing a user's input in pieces, so that no user fills a round of the event loop.

One read may bring a thousand calls, and a user may have many connections. Each round processes a user's input for a
limited time; the rest waits for the next round. A connection with input that waits is not read, so TCP's flow control
holds back its peer.
"""

import asyncio
import time
from typing import Protocol

_PIECE_BYTES = 512  # some thirty calls at most
_ROUND_SECONDS = 0.001


class Source(Protocol):
    """A connection."""

    def take(self, data: bytes) -> None:
        """Take data that came."""

    def pause(self) -> None:
        """Read no more."""

    def resume(self) -> None:
        """Read again."""


class Inlet:
    """Divides the input of one user's connections into rounds of the event loop."""

    def __init__(self) -> None:
        self._held: dict[Source, memoryview] = {}  # the next one first
        self._spent_seconds = 0.0  # in this round
        self._next_round: asyncio.Handle | None = None

    def receive(self, source: Source, data: bytes) -> None:
        """Pass data that arrived to a connection, now or in later rounds."""
        if source in self._held:  # data that was read before the connection was paused
            self._held[source] = memoryview(bytes(self._held[source]) + data)
            return
        rest = memoryview(data)
        while rest and self._spent_seconds < _ROUND_SECONDS:
            rest = self._take_piece(source, rest)
        if rest:
            source.pause()
            self._held[source] = rest

    def forget(self, source: Source) -> None:
        """Drop the data of a connection that is closed."""
        self._held.pop(source, None)

    def _take_piece(self, source: Source, data: memoryview) -> memoryview:
        """Pass some data to a connection; return the rest."""
        if self._next_round is None:
            self._next_round = asyncio.get_running_loop().call_soon(self._start_round)
        began = time.perf_counter()
        source.take(bytes(data[:_PIECE_BYTES]))
        self._spent_seconds += time.perf_counter() - began
        return data[_PIECE_BYTES:]

    def _start_round(self) -> None:
        self._next_round = None
        self._spent_seconds = 0.0
        while self._held and self._spent_seconds < _ROUND_SECONDS:
            source = next(iter(self._held))
            if rest := self._take_piece(source, self._held.pop(source)):
                self._held[source] = rest  # behind the others
            else:
                source.resume()
