"""Turns: only so many do something at a time, and only a part of them for one user. The others wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from workerd.engine.errors import NoAnswer
from workerd.engine.queues import Queues

_PART_OF_ONE_USER = 4


class Turns:
    """Gives turns, in the order in which they are asked for.

    Args:
        work: what is waited for, as a noun phrase for errors.
        most: how many have one at a time, a quarter of them for one user; zero is any amount.
        limit_seconds: how long one is waited for.
    """

    def __init__(self, work: str, most: int, limit_seconds: float) -> None:
        self._work = work
        self._most = most
        self._limit_seconds = limit_seconds
        self._of_users = Queues(-(-most // _PART_OF_ONE_USER))
        self._of_all = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def take(self, user_id: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the context lasts.

        Raises:
            NoAnswer: it does not come in time.
        """
        if not self._most:
            yield
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._limit_seconds):
                    await stack.enter_async_context(self._of_users.turn(user_id))
                    await stack.enter_async_context(self._of_all)
            except TimeoutError:
                raise NoAnswer(self._work, self._limit_seconds) from None
            yield
