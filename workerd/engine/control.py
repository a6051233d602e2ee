"""The FIFO on which a supervisor receives orders (`workerd.engine.job.StopOrder`)."""

import os
import select
from collections.abc import Callable

import msgspec

from workerd.engine.folder import JobFolder
from workerd.engine.job import StopOrder


class Control:
    """The supervisor's end of the FIFO, which is made.

    Args:
        folder: the job's.
        report: called with a sentence about each order that cannot be decoded.

    Attributes:
        descriptor: readable when there are orders.
    """

    def __init__(self, folder: JobFolder, report: Callable[[str], None]) -> None:
        self._path = folder.control
        self._report = report
        self._path.unlink(missing_ok=True)  # of a supervisor that died before it executed anything
        os.mkfifo(self._path, 0o600)
        # Open for writing too: it then never comes to end of file when a writer leaves (fifo(7)).
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def read(self) -> list[StopOrder]:
        """Return the orders that have arrived, the oldest first."""
        try:
            lines = os.read(self.descriptor, select.PIPE_BUF * 16).splitlines()
        except BlockingIOError:
            return []
        orders = []
        for line in lines:
            try:
                orders.append(msgspec.json.decode(line, type=StopOrder))
            except msgspec.MsgspecError:
                self._report(f"an order on the control pipe was not understood: {line!r}\n")
        return orders

    def close(self) -> None:
        """Close the supervisor's end."""
        os.close(self.descriptor)

    def remove(self) -> None:
        """Remove the FIFO."""
        self._path.unlink(missing_ok=True)
