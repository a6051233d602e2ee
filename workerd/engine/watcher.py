"""Waiting for files to change: one inotify(7) instance, any number of waiters. No polling."""

import asyncio
import contextlib
import errno
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncinotify

from workerd.engine.errors import WatchesExhausted

_GONE = asyncinotify.Mask.DELETE_SELF | asyncinotify.Mask.MOVE_SELF  # a folder was taken away
REPLACED = asyncinotify.Mask.MOVED_TO | _GONE  # a file was replaced in a watched folder
CHANGED = (
    asyncinotify.Mask.MODIFY  # records were appended
    | asyncinotify.Mask.CLOSE_WRITE  # a writer has gone, by its own will or not
    | REPLACED
)


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
        self._inotify = asyncinotify.Inotify()
        self._watches: dict[Path, asyncinotify.Watch] = {}
        self._waiters: dict[Path, set[asyncio.Event]] = defaultdict(set)

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
                for waiters in self._waiters.values():
                    _wake(waiters)
            elif event.watch is not None and asyncinotify.Mask.IGNORED not in event.mask:
                # Ignored are what was dropped here, in whose place there may be another, and what has been told to go.
                self._note(event)
                if event.mask & _GONE and self._watches.get(event.watch.path) is event.watch:
                    self._drop(event.watch.path)  # whoever registers from now on means what has taken its place
                _wake(self._waiters.get(event.watch.path, set()))

    @contextlib.contextmanager
    def watch(self, path: Path) -> Iterator[asyncio.Event]:
        """Register a waiter for a file or a folder.

        Returns:
            An event that is set at each change; whoever waits on it clears it before looking at the file.

        Raises:
            FileNotFoundError: there is no such file.
            WatchesExhausted: the kernel gives out no more watches.
        """
        changed = asyncio.Event()
        if path not in self._watches:
            try:
                self._watches[path] = self._inotify.add_watch(path, self._mask)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # no disk is meant here (inotify_add_watch(2))
                    raise WatchesExhausted from error
                raise
        self._waiters[path].add(changed)
        try:
            yield changed
        finally:
            self._waiters[path].remove(changed)
            if not self._waiters[path]:
                del self._waiters[path]
                if path in self._watches:
                    self._drop(path)

    def _drop(self, path: Path) -> None:
        # OSError: the kernel drops the watch by itself when the file is deleted.
        with contextlib.suppress(OSError):
            self._inotify.rm_watch(self._watches.pop(path))


def _wake(waiters: set[asyncio.Event]) -> None:
    for waiter in waiters:
        waiter.set()
