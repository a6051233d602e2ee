"""Waiting for a process's end on an event loop. Apart from `system.pidfd`, as supervisors have no event loop."""

import asyncio


async def wait_end(handle: int) -> None:
    """Wait until a process has ended, reaped or not. Does not block.

    Args:
        handle: the process, as `system.pidfd.hold` gives it.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)  # readable: it has ended
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
