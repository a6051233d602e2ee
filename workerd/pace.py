"""Dividing the event loop's time among users: one user's calls get a limited number of steps in each round of the loop.

A step is what a call does from one `Pace.step` to the next. Steps within the limit are done at once. The limit follows
the processor time of the rounds, so that rounds stay short whatever a step costs.
"""

import asyncio
import time
from collections import deque

_ROUND_SECONDS = 0.004  # of the processor
_FIRST_STEPS, _MOST_STEPS = 4, 8  # in a round


class Pace:
    """The pace of one user's calls."""

    def __init__(self) -> None:
        self._steps = self._left = _FIRST_STEPS  # in this round
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next_round: asyncio.Handle | None = None
        self._began = 0.0

    async def step(self) -> None:
        """Wait, behind the user's other calls, until the next step may be done, which may be at once."""
        if self._left == 0 or self._waiting:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        else:
            self._count_step()

    def _count_step(self) -> None:
        self._left -= 1
        if self._next_round is None:
            self._began = time.thread_time()
            self._next_round = asyncio.get_running_loop().call_soon(self._start_round)

    def _start_round(self) -> None:
        self._next_round = None
        if time.thread_time() - self._began > _ROUND_SECONDS:
            self._steps = max(1, self._steps // 2)
        elif self._waiting:
            self._steps = min(_MOST_STEPS, self._steps + 1)
        self._left = self._steps
        while self._left and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():  # it is done if its call was cancelled
                waiter.set_result(None)
                self._count_step()
