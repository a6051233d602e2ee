"""How far something is that takes long, for who waits at a terminal."""

import os
import time
from types import TracebackType
from typing import Self

from workerctl.terminal import show_status

_PATIENCE_SECONDS = 1.0
_PERIOD_SECONDS = 0.2


class Progress:
    """Says on standard error how far something is, if that is a terminal, and takes it away at the end.

    What is over soon is not talked of. A context manager.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._next = time.monotonic() + _PATIENCE_SECONDS
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_shown:
            show_status("")

    def __call__(self, done: int, total: int) -> None:
        """Tell how much of how much is done."""
        if time.monotonic() >= self._next and os.isatty(2):
            self._next = time.monotonic() + _PERIOD_SECONDS
            self._is_shown = True
            show_status(f"{self._doing}: {min(100, 100 * done // max(1, total))} %")
