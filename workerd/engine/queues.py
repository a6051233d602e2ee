"""Any number of queues: one for each job, or for each user and RPC."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable


class Queues:
    """Bounds how many tasks with the same key are at work at a time. Nothing is kept of a queue that is empty.

    Args:
        at_once: how many tasks of one queue. The others wait in the order in which they came.
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
