"""What a job's journal says of its log: that it waits for room, or has ended early."""

import math
from collections.abc import Mapping

from workerd.engine.capture import Capture
from workerd.engine.job import JobStatus

_LONGEST_PAUSE_SECONDS = 300.0


class LogNotes:
    """Tells when to record how a log stands.

    On a full disk that may change each second for as long as the job runs, and each record makes the journal longer:
    so the first changes are recorded at once, and each further one a second later than the one before.

    Attributes:
        next_time: when there is something to record (time.monotonic); infinity for not as things are.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._pause_seconds = self._not_before = 0.0
        self.next_time = math.inf

    def current(self) -> Mapping[str, bool | str]:
        """Return how the log stands, by the names that `JobStatus` has."""
        return {"waits_for_room": self._capture.waits_for_room, "log_ended_early": self._capture.ended_early}

    def due(self, recorded: JobStatus, now: float) -> Mapping[str, bool | str]:
        """Return what is to be recorded now; nothing if it is as it was recorded, or not yet.

        Args:
            recorded: what the journal says.
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
