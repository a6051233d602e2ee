"""Warnings of what may happen any number of times, told once in a while."""

import time
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger()
_PAUSE_SECONDS = 60.0


class Notices:
    """Warnings, of which each kind is told at most once a minute, with the number of those that were not.

    Args:
        clock: tells the time in seconds, and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def warn(self, what: str, limit: str, **fields: Any) -> bool:
        """Tell that a limit was met, or count it.

        Args:
            what: happened.
            limit: the name of the limit, which is what tells kinds apart.

        Returns:
            Whether it was told.
        """
        now = self._clock()
        if now - self._told_at.get(limit, now - _PAUSE_SECONDS) < _PAUSE_SECONDS:
            self._untold[limit] = self._untold.get(limit, 0) + 1
            return False
        self._told_at[limit] = now
        log.warning(what, limit=limit, untold_before=self._untold.pop(limit, 0), **fields)
        return True
