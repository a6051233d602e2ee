"""How much one user, and all users together, may have of the daemon.

`Limits` is what can be set. `Meter` counts what is under way in this process, and knows nothing of sockets or tasks.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields

from workerd.engine.admission import Bucket, JobLimits
from workerd.errors import ConfigurationInvalid, LimitReached

MIN_HEADER_BYTES = 1024  # a call's own take some hundred
MIN_REQUEST_BYTES = 1024
MAX_HEADER_BYTES = 2**32 - 1  # what can be told of it (SETTINGS_MAX_HEADER_LIST_SIZE, RFC 9113 §6.5.1)
MAX_AMOUNT = 2**63 - 1  # what the catalogue can compare with (sqlite.org/datatype3.html)
# Streams that a peer may reset: those of nghttp2 (nghttp2_option_set_stream_reset_rate_limit(3)), which has them for
# the same reason (CVE-2023-44487).
_RESETS_PER_SECOND, _MOST_RESETS = 33.0, 1000.0
_FRAMES_PER_SECOND, _MOST_FRAMES = 1000.0, 10_000.0
_GOODBYES_PER_SECOND, _MOST_GOODBYES = 2.0, 4.0
_MOST_REFUSED = 100  # calls of one user, beyond those that may be, that are being told that they are too many
_REQUESTS_AT_ONCE = 4  # of the greatest length, or more of shorter ones


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be; 0 is any amount unless it says otherwise.

    Attributes:
        max_jobs: Jobs that run at once.
        max_jobs_per_user: Jobs of one user that run at once.
        max_spawns_per_second: Jobs that a user may start per second, in the long run; ten times as many at once.
        max_starting: Jobs that are being started at once; 1 or more. The others wait.
        max_arguments: Arguments and variables of one job.
        max_argument_bytes: Bytes of the arguments and variables of one job.
        max_connections: Connections.
        max_connections_per_user: Connections of one user.
        max_streams: Calls that are answered with a stream, such as a followed log.
        max_streams_per_user: Such calls of one user.
        max_calls_per_user: Other calls of one user that are under way.
        max_request_bytes: Bytes of one request; 1024 or more.
        max_header_bytes: Bytes of the headers of one call; 1024 or more.
        max_handshakes: Connections that have not proved yet whose they are; 1 or more.
        handshake_seconds: How long a connection may take for that; more than 0.
        request_seconds: How long the request of a call may take to arrive; more than 0.
        idle_seconds: How long a connection may stay without a call. 0: for ever.
    """

    max_jobs: int = 2000
    max_jobs_per_user: int = 500
    max_spawns_per_second: float = 100.0
    max_starting: int = 256
    max_arguments: int = 4096
    max_argument_bytes: int = 256 << 10
    max_connections: int = 4000
    max_connections_per_user: int = 200
    max_streams: int = 6000
    max_streams_per_user: int = 1000
    max_calls_per_user: int = 1000
    max_request_bytes: int = 8 << 20  # above all that the kernel takes, three quarters of it (execve(2))
    max_header_bytes: int = 16 << 10
    max_handshakes: int = 256
    handshake_seconds: float = 10.0
    request_seconds: float = 60.0
    idle_seconds: float = 900.0

    def check(self) -> None:
        """Check that it can be so.

        Raises:
            ConfigurationInvalid: with the setting and what it should be.
        """
        least: dict[str, float] = {
            "max_request_bytes": MIN_REQUEST_BYTES,
            "max_header_bytes": MIN_HEADER_BYTES,
            "max_handshakes": 1,
            "max_starting": 1,
        }
        for each in fields(self):
            option, value = f"--{each.name.replace('_', '-')}", getattr(self, each.name)
            if not (math.isfinite(value) and value >= least.get(each.name, 0)):
                raise ConfigurationInvalid(f"{option} {value} cannot be: give {least.get(each.name, 0)} or more")
            most = MAX_HEADER_BYTES if each.name == "max_header_bytes" else MAX_AMOUNT
            if value > most:
                raise ConfigurationInvalid(f"{option} {value} cannot be: give {most} at most")
        if not self.handshake_seconds:
            raise ConfigurationInvalid("--handshake-seconds 0 is no time for a handshake: give more than 0")
        if not self.request_seconds:
            raise ConfigurationInvalid("--request-seconds 0 is no time for a request: give more than 0")

    def for_jobs(self) -> JobLimits:
        """Give those that are the engine's."""
        return JobLimits(
            self.max_jobs,
            self.max_jobs_per_user,
            self.max_spawns_per_second,
            self.max_arguments,
            self.max_argument_bytes,
            self.max_starting,
        )


DEFAULT_LIMITS = Limits()


@dataclass(slots=True)
class _Usage:
    """What one user has."""

    connections: int = 0
    streams: int = 0
    calls: int = 0
    accepted: int = 0
    receiving_bytes: int = 0
    resets: Bucket = field(default_factory=lambda: Bucket(_RESETS_PER_SECOND, _MOST_RESETS))
    frames: Bucket = field(default_factory=lambda: Bucket(_FRAMES_PER_SECOND, _MOST_FRAMES))
    goodbyes: Bucket = field(default_factory=lambda: Bucket(_GOODBYES_PER_SECOND, _MOST_GOODBYES))


class Meter:
    """Counts what users have under way in this process. It keeps some numbers for each user who ever connected.

    Args:
        clock: tells the time in seconds, and never goes back.

    Attributes:
        limits: what there may be.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._connections = 0
        self._streams = 0
        self._usages: dict[str, _Usage] = {}

    def has_room(self) -> bool:
        """Tell whether there may be one connection more."""
        return not 0 < self.limits.max_connections <= self._connections

    def connect(self, user_id: str) -> None:
        """Count a connection, until `disconnect`.

        Raises:
            LimitReached: there are too many; it is not counted.
        """
        usage, most = self._of(user_id), self.limits.max_connections_per_user
        if not self.has_room():
            raise _full("max-connections", "there are as many connections", self._connections, "try again later")
        if 0 < most <= usage.connections:
            raise _full("max-connections-per-user", "you have as many connections", most, "close some")
        self._connections += 1
        usage.connections += 1

    def disconnect(self, user_id: str) -> None:
        """Count a connection no more."""
        self._connections -= 1
        self._of(user_id).connections -= 1

    def begin_call(self, user_id: str) -> bool:
        """Count a call whose headers have come, served or not, until `end_call`.

        Returns:
            Whether it is one of as many as may be; otherwise it is not counted.
        """
        usage, limits = self._of(user_id), self.limits
        is_limited = limits.max_calls_per_user and limits.max_streams_per_user
        most = limits.max_calls_per_user + limits.max_streams_per_user + _MOST_REFUSED
        if is_limited and usage.accepted >= most:
            return False
        usage.accepted += 1
        return True

    def end_call(self, user_id: str) -> None:
        """Count a call no more."""
        self._of(user_id).accepted -= 1

    @contextlib.contextmanager
    def call(self, user_id: str, *, streaming: bool) -> Iterator[None]:
        """Count a call for as long as the context lasts.

        Args:
            streaming: whether it is answered with a stream.

        Raises:
            LimitReached: there are too many; it is not counted.
        """
        usage, limits = self._of(user_id), self.limits
        if not streaming:
            if 0 < limits.max_calls_per_user <= usage.calls:
                raise _full("max-calls-per-user", "as many calls of yours are under way", usage.calls, "let some end")
            usage.calls += 1
            try:
                yield
            finally:
                usage.calls -= 1
            return
        if 0 < limits.max_streams_per_user <= usage.streams:
            raise _full("max-streams-per-user", "as many streams of yours are open", usage.streams, "let some end")
        if 0 < limits.max_streams <= self._streams:
            raise _full("max-streams", "as many streams of all users are open", self._streams, "try again later")
        usage.streams += 1
        self._streams += 1
        try:
            yield
        finally:
            usage.streams -= 1
            self._streams -= 1

    def streams_of(self, user_id: str) -> int:
        """Return how many calls of a user are being answered with a stream."""
        return self._of(user_id).streams

    @contextlib.contextmanager
    def receiving(self, user_id: str, size_bytes: int) -> Iterator[None]:
        """Count the bytes of a request for as long as they are on their way.

        Raises:
            LimitReached: they are too many, or all that are on their way are; they are not counted.
        """
        usage, most = self._of(user_id), self.limits.max_request_bytes
        if size_bytes > most:
            advice = f"ask for less at once, {most} bytes at most"
            raise LimitReached("max-request-bytes", f"the request has {size_bytes} bytes", advice)
        if usage.receiving_bytes + size_bytes > most * _REQUESTS_AT_ONCE:
            problem = f"requests of yours with {usage.receiving_bytes + size_bytes} bytes are on their way at once"
            raise LimitReached("max-request-bytes", problem, "send one after another")
        usage.receiving_bytes += size_bytes
        try:
            yield
        finally:
            usage.receiving_bytes -= size_bytes

    def may_reset(self, user_id: str) -> bool:
        """Count a stream that a user's peer reset, and tell whether it is still one of few."""
        return not self._of(user_id).resets.take(self._clock())

    def may_be_told(self, user_id: str) -> bool:
        """Return whether to tell a user why a connection is closed, which keeps it open for some seconds more."""
        return not self._of(user_id).goodbyes.take(self._clock())

    def may_send(self, user_id: str, frames: float) -> bool:
        """Count frames that carry next to nothing, and tell whether they are still few.

        Args:
            frames: how many; negative for what makes others right, such as a call.
        """
        bucket, now = self._of(user_id).frames, self._clock()
        if frames < 0:
            bucket.charge(now, frames)
            return True
        return not bucket.take(now, frames)

    def _of(self, user_id: str) -> _Usage:
        return self._usages.setdefault(user_id, _Usage())


def _full(limit: str, problem: str, most: int, advice: str) -> LimitReached:
    return LimitReached(limit, f"{problem} as may be, {most}", advice)
