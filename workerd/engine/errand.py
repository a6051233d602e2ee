"""A call in a thread of its own, for code without an event loop (`workerd.engine.threads` is for code with one)."""

import _thread
import contextlib
from collections.abc import Callable


class Errand:
    """Starts a call in a thread of its own, and waits for it within a limit.

    Not threading.Thread, whose start() waits for the thread without a limit, also if that gets no memory to begin with.

    Args:
        work: the call. Its exceptions are dropped.

    Raises:
        RuntimeError, MemoryError: the system provides no thread.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._begun, self._done = _thread.allocate_lock(), _thread.allocate_lock()
        self._begun.acquire(blocking=False)
        self._done.acquire(blocking=False)
        _thread.start_new_thread(self._run, ())

    @property
    def is_at_work(self) -> bool:
        """Whether the call has begun and not returned."""
        return self._done.locked() and not self._begun.locked()

    def wait(self, begin_seconds: float, seconds: float) -> bool:
        """Wait until the call has returned.

        Args:
            begin_seconds: how long to wait at most until it begins.
            seconds: how long to wait at most from then on.

        Returns:
            Whether it has returned. Otherwise it may still do so, or begin.
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
