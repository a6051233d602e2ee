"""When a job's journal gets a record that the log waits for room, or has ended early."""

import math
from collections.abc import Mapping

from workerd.engine.capture import Capture
from workerd.engine.job import JobStatus

_LONGEST_PAUSE_SECONDS = 300.0


class LogNotes:
    """Decides when to record the state of a log.

    On a full disk the state may change each second, and each record makes the journal longer. So the first change is
    recorded at once, and the pause after each record is a second longer than the one before.

    Attributes:
        next_time: when a record is due (time.monotonic); infinity if none is.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._pause_seconds = self._not_before = 0.0
        self.next_time = math.inf

    def current(self) -> Mapping[str, bool | str]:
        """Return the state of the log as fields of `JobStatus`."""
        return {"waits_for_room": self._capture.waits_for_room, "log_ended_early": self._capture.ended_early}

    def due(self, recorded: JobStatus, now: float) -> Mapping[str, bool | str]:
        """Return the fields to record now; none if the record is up to date, or not due yet.

        Args:
            recorded: the status in the journal.
            now: the time (time.monotonic).
        """
        current = self.current()
        self.next_time = math.inf
        if all(getattr(recorded, name) == value for name, value in current.items()):
            return {}
        if now < self._not_before and recorded.log_ended_early == self._capture.ended_early:
            self.next_time = self._not_before
            return {}
        self._pause_seconds = min(self._pause_seconds + 1.0, _LONGEST_PAUSE_SECONDS)
        self._not_before = now + self._pause_seconds
        return current
