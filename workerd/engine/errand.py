"""A call in a thread of its own, for code without an event loop."""

import _thread
import contextlib
from collections.abc import Callable


class Errand:
    """A call in a thread of its own, which is waited for within a limit.

    Not threading.Thread, whose start() waits until the thread has begun: for ever if it gets no memory to begin with.

    Args:
        work: what to call. What it raises is dropped.

    Raises:
        RuntimeError, MemoryError: the system gives no thread.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._begun, self._done = _thread.allocate_lock(), _thread.allocate_lock()
        self._begun.acquire(blocking=False)
        self._done.acquire(blocking=False)
        _thread.start_new_thread(self._run, ())

    @property
    def is_at_work(self) -> bool:
        """Whether the thread has begun and is not done."""
        return self._done.locked() and not self._begun.locked()

    def wait(self, begin_seconds: float, seconds: float) -> bool:
        """Wait until the thread is done.

        Args:
            begin_seconds: how long to wait for its begin at most.
            seconds: how long from then on at most.

        Returns:
            Whether it is done. One that has not begun may still do so.
        """
        return _wait_released(self._begun, begin_seconds) and _wait_released(self._done, seconds)

    def _run(self) -> None:
        self._begun.release()
        with contextlib.suppress(BaseException):
            self._work()
        self._done.release()


def _wait_released(lock: _thread.LockType, seconds: float) -> bool:
    if not lock.acquire(timeout=seconds):
        return False
    lock.release()
    return True
