"""Queues, of which there may be any number: one for each job, or for each user and kind of call."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable


class Queues:
    """Lets only a few through of those that have something in common. It keeps nothing of a queue that is empty.

    Args:
        at_once: how many of one queue go on at a time. The others wait in the order in which they came.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._queues: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a turn in a queue, and keep it for as long as the context lasts."""
        turns, users = self._queues.get(key) or (asyncio.Semaphore(self._at_once), 0)
        self._queues[key] = turns, users + 1
        try:
            async with turns:
                yield
        finally:
            turns, users = self._queues.pop(key)
            if users > 1:
                self._queues[key] = turns, users - 1
