"""A descriptor that is set aside for when there are no more."""

import contextlib
import os
from collections.abc import Iterator


class Spare:
    """A descriptor that is given up for one that is needed more."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self.take()

    def take(self) -> bool:
        """Set one aside, unless that is done; return whether there is one."""
        if self._descriptor is None:
            with contextlib.suppress(OSError):
                self._descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptor is not None

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Let whoever opens something within the context have it; another thread may come first."""
        self.close()
        try:
            yield
        finally:
            self.take()

    def close(self) -> None:
        """Give it up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
