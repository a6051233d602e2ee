"""Dividing the event loop's time among users: of what is done for one, only a few steps are in each round of the loop.

A step is what a call does from one `Pace.step` to the next; it is short. While there are few, each is done at once.
"""

import asyncio
from collections import deque

_STEPS = 2  # in a round


class Pace:
    """The pace of one user's calls."""

    def __init__(self) -> None:
        self._left = _STEPS  # in this round
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next_round: asyncio.Handle | None = None

    async def step(self) -> None:
        """Wait, behind the user's other calls, until the next step may be done. It may be at once."""
        if self._left == 0 or self._waiting:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        else:
            self._count_step()

    def _count_step(self) -> None:
        self._left -= 1
        if self._next_round is None:
            self._next_round = asyncio.get_running_loop().call_soon(self._start_round)

    def _start_round(self) -> None:
        self._next_round = None
        self._left = _STEPS
        while self._left and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # as it is once its call is cancelled
                waiter.set_result(None)
                self._count_step()
