"""Waiting for signals and for whatever comes first, and doing something meanwhile."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any

from workerd.engine import signals


@contextlib.asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have something done for as long as the context lasts. What it fails with is raised at the end of that."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


def stop_signals() -> asyncio.Event:
    """Return an event that SIGTERM sets, and SIGINT unless this process was started with it ignored."""
    return signal_event(signal.SIGTERM, *(() if signals.is_ignored(signal.SIGINT) else (signal.SIGINT,)))


def signal_event(*numbers: signal.Signals) -> asyncio.Event:
    """Give an event that each of some signals sets."""
    event = asyncio.Event()
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


async def wait_first(*waits: Awaitable[object]) -> int:
    """Wait until one of several things has come about, or failed, and leave the others.

    Returns:
        Which one: its position among the arguments.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()
    return next(number for number, task in enumerate(tasks) if task in done)
