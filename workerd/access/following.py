"""Taking up what changes in a folder while the daemon runs, whoever changes it and however."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import structlog
from asyncinotify import Event, Mask

from workerd.engine.errors import WatchesExhausted
from workerd.engine.watcher import REPLACED, Watcher
from workerd.errors import shortage_of

log = structlog.get_logger()
# Files once they are written (not while they are: half of one may seem to be whole), what is made, files that become
# readable, and what goes without anything in its place.
_MASK = REPLACED | Mask.CLOSE_WRITE | Mask.CREATE | Mask.ATTRIB | Mask.DELETE | Mask.MOVED_FROM
_AGAIN_SECONDS = 5.0


async def follow_folder(folder: Path, look: Callable[[], bool], unfinished: set[str] | None = None) -> None:
    """Call a function at once and whenever something in a folder has changed, until cancelled.

    Where the kernel cannot tell of changes, it is called every few seconds.

    Args:
        folder: it need not be there; a link that it is is followed once.
        look: reads the folder, one file at a time, and returns False if the machine lacked something for that, such as
            memory. It is called again some seconds later then, also without a change.
        unfinished: is kept up to date with the names of files that were made and not written and closed since.
    """
    names: set[str] = set() if unfinished is None else unfinished
    problem = ""

    def note(event: Event) -> None:
        # What is made as a whole, as a link is, has its name here for ever, which says nothing unless it is empty.
        if event.mask & Mask.CREATE:
            names.add(str(event.name))
        else:
            names.discard(str(event.name))

    def mended() -> None:
        nonlocal problem
        if problem:
            log.info("changes are noticed at once again", folder=str(folder))
        problem = ""

    try_look = _Look(folder, look)
    while True:
        try:
            with Watcher(_MASK, note) as watcher:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(watcher.run())
                    tasks.create_task(_follow(watcher, folder, try_look, mended))
        except* (OSError, WatchesExhausted) as problems:
            if str(problems.exceptions[0]) != problem:
                problem = str(problems.exceptions[0])
                log.error("changes are noticed some seconds late", folder=str(folder), error=problem)
        try_look()
        await asyncio.sleep(_AGAIN_SECONDS)


class _Look:
    """Looks, and goes on after a failure. A failure that lasts is logged once."""

    def __init__(self, folder: Path, look: Callable[[], bool]) -> None:
        self._folder = folder
        self._look = look
        self._problem = ""

    def __call__(self) -> bool:
        try:
            found_all = self._look()
        except Exception as error:
            problem = str(error) or type(error).__name__
            if problem != self._problem:
                log.exception("what was changed could not be taken up yet", folder=str(self._folder))
            self._problem = problem
            return shortage_of(error) is None
        self._problem = ""
        return found_all


async def _follow(watcher: Watcher, folder: Path, look: _Look, watched: Callable[[], None]) -> None:
    while True:
        nearest = _nearest(folder)
        try:
            with watcher.watch(nearest) as changed:
                watched()
                seconds = None if look() else _AGAIN_SECONDS
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), seconds)
        except FileNotFoundError:  # the folder went just now: another is the nearest
            continue
        except PermissionError:  # it was closed to the daemon just now
            if nearest == Path(folder.anchor):
                raise


def _nearest(folder: Path) -> Path:
    """Give a folder, or as long as it is not there or closed to the daemon, the nearest of those in which it would be.

    Only what may be read can be watched (inotify_add_watch(2)). The root is given in any case.
    """
    return next((path for path in (folder, *folder.parents) if _can_be_watched(path)), Path(folder.anchor))


def _can_be_watched(path: Path) -> bool:
    return os.path.isdir(path) and os.access(path, os.R_OK, effective_ids=True)
