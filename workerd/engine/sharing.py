"""Sharing a job: who besides its owner may do what with it, in the file `shares` of its folder.

What a right means is not known here. Several processes may share a job at a time: none undoes what another did.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from system.file_lock import LockHeld
from workerd.engine.errors import InvalidArgument, SpoolCorrupt
from workerd.engine.folder import HELD_SECONDS, JobFolder
from workerd.engine.job import Share, User
from workerd.engine.queues import Queues
from workerd.engine.threads import Threads

MAX_USERS = 1000
_LIMIT_SECONDS = 30.0
_PAUSE_SECONDS = 0.05  # between two attempts to hold a folder
Bind = Callable[[tuple[Share, ...]], tuple[Share, ...]]
"""Returns shares with the ids of users who had none when the job was shared with them."""


class Sharer:
    """Shares jobs, one change of a job at a time: many changes of one job hold up no change of another."""

    def __init__(self) -> None:
        self._threads = Threads("sharing a job", most=8, limit_seconds=_LIMIT_SECONDS)
        self._queues = Queues(1)

    async def set_rights(self, folder: JobFolder, user: User, rights: Collection[str], bind: Bind) -> tuple[Share, ...]:
        """Set what one user may do with a job from now on, as the function `set_rights` does.

        Raises:
            LockHeld: another process holds the folder for too long.
            NoAnswer: the disk takes too long.
        """
        async with self._queues.turn(folder.job_id):
            deadline = time.monotonic() + HELD_SECONDS
            while True:
                try:
                    return await self._threads.run(set_rights, folder, user, rights, bind, 0.0)
                except LockHeld as error:  # not waited for in a thread, which changes of other jobs need
                    if time.monotonic() > deadline:
                        raise LockHeld(folder.path, HELD_SECONDS, error.holder) from error
                await asyncio.sleep(_PAUSE_SECONDS)


def set_rights(
    folder: JobFolder,
    user: User,
    rights: Collection[str],
    bind: Bind = lambda shares: shares,
    held_seconds: float = HELD_SECONDS,
) -> tuple[Share, ...]:
    """Set what one user may do with a job from now on. Blocks the thread until it is on the disk.

    Args:
        folder: the job's.
        user: who. A share with the same id or the same name is replaced.
        rights: all that the user is to have; none takes everything back.
        bind: return shares with the ids of users who had none.
        held_seconds: how long to wait for another process that holds the folder.

    Returns:
        With whom the job is shared now, by name.

    Raises:
        FileNotFoundError: there is no such job, or it was removed meanwhile.
        InvalidArgument: it is shared with too many users.
        SpoolCorrupt: with whom it is shared cannot be read.
    """
    with folder.wait_held(held_seconds):
        before = folder.read_shares()
        if folder.read_status() is None:  # it has not begun, and may be taken away without being held
            raise FileNotFoundError(folder.path)
        others = [share for share in bind(before) if not _is_same(share.user, user)]
        if rights and len(others) >= MAX_USERS:
            raise InvalidArgument("user", f"is one too many: share a job with {MAX_USERS} users at most")
        changed = [Share(user, tuple(sorted(set(rights))))] if rights else []
        after = tuple(sorted(others + changed, key=lambda share: (share.user.name, share.user.id)))
        if after != before:
            folder.write_shares(after)
        return after


def grantees_of(shares: Collection[Share]) -> list[str]:
    """Return the users of shares as the catalogue has them: the ids, or the names of users without an id."""
    return [share.user.id or share.user.name for share in shares]


def find_shared(jobs: Path) -> list[tuple[str, list[str]]]:
    """Find the jobs that are shared with anybody.

    Args:
        jobs: the directory of the jobs' folders.

    Returns:
        The id of each, and the users that it is shared with, as `grantees_of` returns them.
    """
    found = []
    with os.scandir(jobs) as entries:
        for entry in entries:
            folder = JobFolder(Path(entry.path))
            if os.path.exists(folder.shares):
                with contextlib.suppress(OSError, SpoolCorrupt):  # removed, or damaged: the shares have no effect
                    found.append((entry.name, grantees_of(folder.read_shares())))
    return found


def _is_same(one: User, other: User) -> bool:
    return one.name == other.name or (bool(one.id) and one.id == other.id)
