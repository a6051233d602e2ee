"""Threads for blocking work: each kind has its own, so that one kind that hangs does not hold up the others."""

import _thread
import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

from workerd.engine.errors import NoAnswer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_BEGIN_SECONDS = 10.0


class Threads:
    """Runs blocking calls of one kind, each in a thread, a few at a time.

    A thread that hangs does not keep the process from ending.

    Args:
        work: what the calls do, as a noun phrase for errors.
        most: how many run at a time. The others wait for their turn, in the order in which they came.
        limit_seconds: how long a call may take, its turn included; None for any time.
    """

    def __init__(self, work: str, *, most: int, limit_seconds: float | None) -> None:
        self._work = work
        self._turns = asyncio.Semaphore(most)
        self._limit_seconds = limit_seconds

    async def run(self, function: Callable[[Unpack[Ts]], T], *arguments: *Ts) -> T:
        """Call a function in a thread, and return what it returns.

        Raises:
            NoAnswer: it takes too long. The thread goes on, and keeps its turn until it is done.
            RuntimeError: the system gives no thread, or no memory for it to begin with.
            Exception: whatever the function raises.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._limit_seconds):
                await self._turns.acquire()
                self._start(done, function, arguments)
                return await asyncio.shield(done)
        except TimeoutError:
            if done.done():  # the function's own
                raise
            raise NoAnswer(self._work, self._limit_seconds or math.inf) from None

    def _start(self, done: "asyncio.Future[T]", function: Callable[[Unpack[Ts]], T], arguments: tuple[*Ts]) -> None:
        loop = asyncio.get_running_loop()
        taken = _thread.allocate_lock()  # by the thread or by `give_up`, and never released

        def give_up() -> None:
            if taken.acquire(blocking=False):
                finish(None, RuntimeError(f"a new thread has not begun within {_BEGIN_SECONDS:g} s"))

        def finish(result: T | None, error: BaseException | None) -> None:
            giving_up.cancel()
            self._turns.release()
            if error is not None:
                done.set_exception(error)
                done.exception()  # the caller may have stopped waiting
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            if not taken.acquire(blocking=False):
                return
            result, error = None, None
            try:
                result = function(*arguments)
            except BaseException as failure:
                error = failure
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(finish, result, error)

        giving_up = loop.call_later(_BEGIN_SECONDS, give_up)
        try:
            # Not threading.Thread: its start() waits for the thread, for ever if that gets no memory to begin with.
            _thread.start_new_thread(work, ())
        except BaseException:
            giving_up.cancel()
            self._turns.release()
            raise
