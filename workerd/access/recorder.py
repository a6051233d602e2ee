"""Writing what callers do into the audit trail, where no user's lines push out those of the others.

What changes something is always written, or is not done. Decisions that deny, and those about what only looks, are
written up to a rate for each user. Those beyond it are counted, and one line says how many there were.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from workerd.engine.admission import Bucket
from workerd.engine.job import User
from workerd.errors import AuditFailed

log = structlog.get_logger()
_LINES_PER_SECOND = 50.0
_BURST_LINES = 1000.0
LEFT_OUT = "left-out"


class Record(Protocol):
    """Writes an event into the audit trail, or raises AuditFailed."""

    def __call__(self, event: Mapping[str, Any], *, urgent: bool = False) -> None:
        """Write an event; `urgent` may use room on the disk that is kept from the others."""


@dataclass(slots=True)
class _Usage:
    """What one user has written lately, and how many lines were left out since the last that says so."""

    user: User
    bucket: Bucket = field(default_factory=lambda: Bucket(_LINES_PER_SECOND, _BURST_LINES))
    left_out: int = 0


class Recorder:
    """Writes for all callers of one process.

    Args:
        record: writes into the trail.
        clock: tells the time in seconds, and never goes back.
    """

    def __init__(self, record: Record, clock: Callable[[], float] = time.monotonic) -> None:
        self._record = record
        self._clock = clock
        self._usages: dict[str, _Usage] = {}
        self._behind: dict[str, _Usage] = {}  # those of whom lines were left out

    def record(self, event: Mapping[str, Any], *, urgent: bool = False) -> None:
        """Write an event.

        Raises:
            AuditFailed: it could not be written.
        """
        self._catch_up()
        self._record(event, urgent=urgent)

    def record_some(self, user: User, event: Mapping[str, Any]) -> None:
        """Write an event that changes nothing, or count it if the user has had too many of those lately.

        Args:
            user: whose certificate it is.

        Raises:
            AuditFailed: it could not be written.
        """
        usage = self._usages.setdefault(user.id, _Usage(user))
        if usage.bucket.take(self._clock()):
            if not usage.left_out:
                log.warning("lines of a user are left out of the audit trail", user=user.name, most=_LINES_PER_SECOND)
                self._behind[user.id] = usage
            usage.left_out += 1
        else:
            self.record(event)

    def close(self) -> None:
        """Write how many lines were left out and not told of yet."""
        for usage in [*self._behind.values()]:
            self._tell(usage)

    def _catch_up(self) -> None:
        if self._behind:
            now = self._clock()
            for usage in [*self._behind.values()]:
                if not usage.bucket.take(now):
                    self._tell(usage)

    def _tell(self, usage: _Usage) -> None:
        user = {"id": usage.user.id, "name": usage.user.name}
        try:
            self._record({"event": LEFT_OUT, "user": user, "lines": usage.left_out})
        except AuditFailed as error:
            log.error("something is missing in the audit trail", user=user, lines=usage.left_out, error=str(error))
            return
        usage.left_out = 0
        del self._behind[usage.user.id]
