"""Trying again: when, how often and for how long. The one place for this policy.

It is not tenacity's or stamina's: both count from the first attempt, and here the time begins anew with everything that
a log brings; what would be left for them is one power of two.
"""

import math
import random
import time
from dataclasses import dataclass

from workerctl.errors import UsageInvalid

DEFAULT_RETRY_SECONDS = 60.0
DEFAULT_KEEPALIVE_SECONDS = 20.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_FIRST_CONTACT_SECONDS = 2.0
_SETTLED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client bears with a daemon that does not answer.

    Attributes:
        retry_seconds: for how long a call is made again, counted from when the daemon was last there for it; zero for
            not at all. While the daemon has not been heard yet it is two seconds at most: see `Attempts`.
        keepalive_seconds: how long a connection may be silent before it is taken for dead; greater than zero.

    Raises:
        UsageInvalid: one of them cannot be.
    """

    retry_seconds: float = DEFAULT_RETRY_SECONDS
    keepalive_seconds: float = DEFAULT_KEEPALIVE_SECONDS

    def __post_init__(self) -> None:
        if not self.retry_seconds >= 0:  # not a number is not, either
            raise UsageInvalid(f"--retry-seconds {self.retry_seconds} is no time to try: give 0 or more")
        if not (math.isfinite(self.keepalive_seconds) and self.keepalive_seconds > 0):
            raise UsageInvalid(f"--keepalive-seconds {self.keepalive_seconds} is no time to wait: give more than 0")


class Attempts:
    """The attempts at one call, of which the first begins now.

    First contact is made when the daemon has been heard within its encryption, on any connection of the client: it has
    proved who it is then, and has taken the client's certificate. Before that the address may be a wrong one, and a
    user who mistyped it must not wait: a daemon that is only just being restarted is waited for, and no more.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._began = time.monotonic()
        self._away_since: float | None = None
        self._failures = 0

    @property
    def tried_seconds(self) -> float:
        """For how long the call has failed."""
        return 0.0 if self._away_since is None else time.monotonic() - self._away_since

    @property
    def first_failure(self) -> bool:
        """Whether the last failure was the first since the daemon was there."""
        return self._failures == 1

    def succeeded(self) -> None:
        """Take in that the daemon has answered, at least in part."""
        self._away_since = None

    def failed(self, heard_at: float | None, *, acquainted: bool) -> float | None:
        """Take in that an attempt failed, and say how long to pause before the next: doubling, bounded, and jittered.

        Args:
            heard_at: when the daemon was last heard on the attempt's connection (time.monotonic); None if never.
            acquainted: whether first contact has been made.

        Returns:
            Seconds; None to give up.
        """
        there = max(self._began, heard_at or 0.0)
        # An attempt that stood for a while was no failure, even if there was nothing to send for the daemon.
        if self._away_since is None or there - self._began >= _SETTLED_SECONDS:
            self._away_since, self._failures = there, 0
        self._failures += 1
        limit = min(self._patience.retry_seconds, math.inf if acquainted else _FIRST_CONTACT_SECONDS)
        left = limit - self.tried_seconds
        if left <= 0:
            return None
        bound = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 9))
        return min(left, random.uniform(0.5, 1.0) * bound)  # noqa: S311

    def again(self) -> None:
        """Begin the next attempt."""
        self._began = time.monotonic()
