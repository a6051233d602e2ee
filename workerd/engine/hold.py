"""Holding a state directory: of all processes one has a lock on its file `lock`, with its id in it (flock(2))."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from system import pidfd
from workerd.engine.errors import StateDirectoryInUse
from workerd.engine.files import private

_ORPHANS_SECONDS = (0.01, 0.1, 0.5, 2.0, 5.0)


@contextlib.asynccontextmanager
async def holding(lock: Path) -> AsyncIterator[int]:
    """Hold a state directory.

    Args:
        lock: the file to lock, made if it does not exist.

    Yields:
        The descriptor that holds it. A process that inherits it keeps the next holder waiting.

    Raises:
        PermissionError: the file is another account's.
        StateDirectoryInUse: another process holds it.
    """
    descriptor = private(os.fspath(lock), os.O_RDWR | os.O_CREAT)
    try:
        await _lock(descriptor, lock.parent)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        try:
            yield descriptor
        finally:
            os.ftruncate(descriptor, 0)  # the id may be another process's soon
    finally:
        os.close(descriptor)


def is_in_place(descriptor: int, lock: Path) -> bool:
    """Return whether the file that holds a state directory is the one that another process would lock.

    Args:
        descriptor: as `holding` yields it.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except OSError:
        return False


async def _lock(descriptor: int, directory: Path) -> None:
    for pause in (*_ORPHANS_SECONDS, None):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace") or "?"
            if pause is None or _is_alive(holder):
                raise StateDirectoryInUse(directory, holder) from None
            # It was killed, and the processes that inherited its hold are about to end as well (flock(2) has no limit
            # of time, hence the looks).
            await asyncio.sleep(pause)
        else:
            return


def _is_alive(pid: str) -> bool:
    try:
        with pidfd.hold(int(pid)) as handle:
            return not pidfd.has_ended(handle)
    except (ValueError, ProcessLookupError):
        return False
