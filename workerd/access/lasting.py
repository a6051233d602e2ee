"""What goes on for only as long as it may."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable


@contextlib.asynccontextmanager
async def while_passing(
    check: Callable[[], None], changed: asyncio.Event, pause: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Let the current task go on for as long as a check raises nothing.

    Args:
        check: made at once, and again after each change.
        changed: set at each change.
        pause: awaited before each further check.

    Raises:
        Exception: what the check raised, and the task was cancelled for.
    """
    check()
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(check, changed, pause))
            yield
            watching.cancel()
    except ExceptionGroup as group:  # where the task fails just when it is to be cancelled, the check's comes first
        raise group.exceptions[0] from group.exceptions[0].__cause__


async def _watch(check: Callable[[], None], changed: asyncio.Event, pause: Callable[[], Awaitable[None]]) -> None:
    while True:
        await changed.wait()
        await pause()
        changed.clear()  # only now: the check also covers changes during the pause
        check()
