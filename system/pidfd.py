"""Processes held by a descriptor, which unlike an id never comes to mean another process (pidfd_open(2))."""

import contextlib
import os
import select
from collections.abc import Iterator


@contextlib.contextmanager
def hold(pid: int) -> Iterator[int]:
    """Hold a process for as long as the context lasts.

    Yields:
        A descriptor, for `wait_ended` and for signal.pidfd_send_signal().

    Raises:
        ProcessLookupError: there is no such process.
    """
    handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        os.close(handle)


def has_ended(handle: int) -> bool:
    """Return whether a process has ended, reaped or not."""
    return wait_ended(handle, 0.0)


def wait_ended(handle: int, timeout_seconds: float) -> bool:
    """Wait until a process has ended, reaped or not. Blocks the thread.

    Args:
        handle: the process, as `hold` gives it.
        timeout_seconds: for how long at most.

    Returns:
        Whether it has.
    """
    ended = select.poll()  # and not select(2), which takes no descriptor from 1024 on
    ended.register(handle, select.POLLIN)  # readable: it has ended
    return bool(ended.poll(timeout_seconds * 1000))
