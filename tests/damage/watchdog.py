"""Notice when something holds up the event loop, and tear it away from what it waits for."""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import AsyncIterator
from types import FrameType
from typing import NoReturn

_BEAT_SECONDS = 0.25


@contextlib.asynccontextmanager
async def watching_loop(limit_seconds: float) -> AsyncIterator[list[str]]:
    """Interrupt what blocks the event loop of the main thread for longer than a limit.

    Returns:
        Where it was blocked, each time.
    """
    blocked: list[str] = []
    beat = time.monotonic()
    done = threading.Event()

    async def keep_beating() -> None:
        nonlocal beat
        while True:
            beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)

    def watch() -> None:
        nonlocal beat
        while not done.wait(_BEAT_SECONDS):
            if time.monotonic() - beat > limit_seconds:
                beat = time.monotonic()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
        place = "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        blocked.append(place)
        raise TimeoutError(f"the event loop was blocked for {limit_seconds:g} s at {place}")

    before = signal.signal(signal.SIGUSR2, interrupt)
    beating = asyncio.create_task(keep_beating())
    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield blocked
    finally:
        done.set()
        thread.join()
        beating.cancel()
        signal.signal(signal.SIGUSR2, before)
