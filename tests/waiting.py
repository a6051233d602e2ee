"""Waiting for a job's lock, and for what nothing tells of."""

import asyncio
import fcntl
import time
from collections.abc import Awaitable, Callable

from workerd.engine.folder import JobFolder

LIMIT_SECONDS = 60


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds that takes calls to find out."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds, and hold up everything meanwhile; say what is missing if it does not come about."""
    limit = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


def wait_unlocked(folder: JobFolder) -> None:
    """Wait until no process watches over a job: its supervisor, or the keeper that recovers it, has gone."""
    with folder.lock.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
