"""What an engine takes on: how many jobs at once, how fast one after another, and how large each may be asked for.

Pure accounting: whoever asks says what time it is.
"""

import math
from dataclasses import dataclass

from workerd.engine.errors import RequestTooLarge, SpawnsTooFast
from workerd.engine.request import SpawnRequest

_BURST_SECONDS = 10.0
# A spawn that is refused for the jobs that run has had an engine look at them; that many looks cost as much as a spawn.
_LOOKS_PER_SPAWN = 10


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What an engine takes on; zero is any amount.

    Attributes:
        max_jobs: how many jobs run at once.
        max_jobs_per_user: how many of one owner.
        max_spawns_per_second: how many an owner may start per second in the long run; ten times as many at once.
        max_arguments: how many arguments and variables a job may be given together.
        max_argument_bytes: how many bytes these may have together, counted as the kernel does (execve(2)).
        max_starting: how many jobs are started at once. The others wait.
    """

    max_jobs: int = 0
    max_jobs_per_user: int = 0
    max_spawns_per_second: float = 0.0
    max_arguments: int = 0
    max_argument_bytes: int = 0
    max_starting: int = 0

    @property
    def max_ending(self) -> int:
        """How many lost jobs are ended at once; zero for any number. The others wait."""
        return -(-self.max_starting // 4)


NO_LIMITS = JobLimits()


class Bucket:
    """Tokens that come at a steady rate and are kept up to a number (a token bucket).

    Args:
        per_second: how many come.
        burst: how many are kept at most, and are there at first.
    """

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at = -math.inf

    def take(self, now: float, tokens: float = 1.0) -> float:
        """Take tokens, if there are so many.

        Args:
            now: the time in seconds; it never goes back.

        Returns:
            Zero if they were taken; otherwise in how many seconds they could be.
        """
        self._fill(now)
        if tokens <= self._left:
            self._left -= tokens
            return 0.0
        return (tokens - self._left) / self._per_second

    def charge(self, now: float, tokens: float) -> None:
        """Take tokens, or as many as there are; negative, put some in."""
        self._fill(now)
        self._left = min(max(self._left - tokens, 0.0), self._burst)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
            self._at = now


class Admission:
    """Admits spawns. It keeps a few numbers for each owner who ever spawned."""

    def __init__(self, limits: JobLimits) -> None:
        self.limits = limits
        self._pace: dict[str, Bucket] = {}

    def admit(self, request: SpawnRequest, now: float) -> None:
        """Let a spawn pass that would start a job.

        Raises:
            RequestTooLarge: it asks for too much.
            SpawnsTooFast: its owner has started too many just now.
        """
        self._measure(request)
        rate = self.limits.max_spawns_per_second
        if rate and (wait := self._bucket(request.owner.id).take(now)):
            raise SpawnsTooFast(rate, wait)

    def note_looks(self, owner_id: str, looks: int, now: float) -> None:
        """Charge an owner for looks at jobs that had to be taken to refuse a spawn."""
        if self.limits.max_spawns_per_second:
            self._bucket(owner_id).charge(now, looks / _LOOKS_PER_SPAWN)

    def _bucket(self, owner_id: str) -> Bucket:
        rate = self.limits.max_spawns_per_second
        return self._pace.setdefault(owner_id, Bucket(rate, max(1.0, rate * _BURST_SECONDS)))

    def _measure(self, request: SpawnRequest) -> None:
        count = len(request.args) + len(request.envs)
        if 0 < self.limits.max_arguments < count:
            raise RequestTooLarge("max-arguments", f"{count} arguments and variables", self.limits.max_arguments)
        if not self.limits.max_argument_bytes:
            return
        # Each text has a NUL at its end, and a variable a `=` within.
        size = sum(len(text.encode()) + 1 for text in (request.program, *request.args))
        size += sum(len(name.encode()) + len(value.encode()) + 2 for name, value in request.envs.items())
        if size > self.limits.max_argument_bytes:
            problem = f"arguments and variables of {size} bytes"
            raise RequestTooLarge("max-argument-bytes", problem, self.limits.max_argument_bytes)
