"""Waiting for files to change: one inotify(7) instance, any number of waiters. No polling."""

import asyncio
import contextlib
import errno
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncinotify

from workerd.engine.errors import WatchesExhausted

_GONE = asyncinotify.Mask.DELETE_SELF | asyncinotify.Mask.MOVE_SELF  # a folder was taken away
REPLACED = asyncinotify.Mask.MOVED_TO | _GONE  # a file was replaced in a watched folder
CLOSED = asyncinotify.Mask.CLOSE_WRITE  # a writer has gone, by its own will or not
CHANGED = (
    asyncinotify.Mask.MODIFY  # records were appended
    | CLOSED
    | REPLACED
)


class Change(asyncio.Event):
    """Set at each change of what is watched.

    Attributes:
        name: of the one file in a watched folder that counts; none for all of them.
        mask: which events count; its going always does.
        is_gone: whether that was taken away. Another may be in its place, of which nothing is told.
    """

    is_gone = False

    def __init__(self, name: str | None = None, mask: asyncinotify.Mask = CHANGED) -> None:
        super().__init__()
        self.name = name
        self.mask = mask


def open_inotify() -> asyncinotify.Inotify:
    """Open an inotify instance.

    Raises:
        WatchesExhausted: the account has no more of them.
    """
    try:
        return asyncinotify.Inotify()
    except OSError as error:
        if error.errno == errno.EMFILE:  # of inotify instances: the daemon does not run out of descriptors
            raise WatchesExhausted("instance") from error
        raise


class Watcher:
    """Tells waiters when a file, or a file in a folder, has changed.

    A waiter registers first and looks at the file afterwards, so that no change falls between.

    Args:
        mask: what to tell of.
        note: is given each event before waiters are told.
    """

    def __init__(
        self, mask: asyncinotify.Mask = CHANGED, note: Callable[[asyncinotify.Event], None] = lambda _: None
    ) -> None:
        self._mask = mask
        self._note = note
        self._inotify = open_inotify()
        # By the kernel's number for what is watched: a path may mean another file at another time.
        self._waiters: dict[int, set[Change]] = defaultdict(set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inotify.close()

    async def run(self) -> None:
        """Pass events on until cancelled."""
        async for event in self._inotify:
            if asyncinotify.Mask.Q_OVERFLOW in event.mask:  # the kernel could not keep up: anything may have changed
                for waiter in itertools.chain(*self._waiters.values()):
                    waiter.set()
            elif event.watch is not None and asyncinotify.Mask.IGNORED not in event.mask:
                # Ignored are what was dropped here, in whose place there may be another, and what has been told to go.
                self._note(event)
                for waiter in self._waiters.get(event.watch.wd, ()):
                    if event.mask & _GONE:
                        waiter.is_gone = True
                    if waiter.is_gone or (event.mask & waiter.mask and waiter.name in (None, str(event.name))):
                        waiter.set()

    @contextlib.contextmanager
    def watch(self, path: Path, name: str | None = None, mask: asyncinotify.Mask | None = None) -> Iterator[Change]:
        """Register a waiter for a file or a folder.

        Args:
            path: of either.
            name: of the one file in a folder that counts; none for all of them.
            mask: which of the watcher's events to be told of; none for all of them.

        Returns:
            An event that is set at each change; whoever waits on it clears it before looking at the file.

        Raises:
            FileNotFoundError: there is no such file.
            WatchesExhausted: the kernel gives out no more watches.
        """
        mask = self._mask if mask is None else mask
        changed = Change(name, mask)
        try:  # each time: only the kernel knows whether it is what others watch (inotify_add_watch(2))
            watch = self._inotify.add_watch(path, mask | _GONE | asyncinotify.Mask.MASK_ADD)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # no disk is meant here (inotify_add_watch(2))
                raise WatchesExhausted from error
            raise
        waiters = self._waiters[watch.wd]
        waiters.add(changed)
        try:
            yield changed
        finally:
            waiters.remove(changed)
            if not waiters:
                del self._waiters[watch.wd]
                with contextlib.suppress(OSError):  # the kernel drops it by itself when the file is deleted
                    self._inotify.rm_watch(watch)
