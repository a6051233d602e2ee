"""How much is moved: enough to tell something, or just enough to see that it works."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of all benchmarks.

    Attributes:
        cold_starts: how often a side starts its program in one round.
        short_jobs: how many jobs that end at once are started on one connection.
        in_flight: how many of them at a time.
        stamped_lines: how many lines are timed on their way.
        chatty_lines: how many lines of 40 bytes the chatty job prints.
        follow_seconds: for how long the followed job prints.
        call_seconds: for how long calls are counted.
    """

    log_bytes: int = 1 << 30
    capture_bytes: int = 2 << 30
    cold_starts: int = 5
    short_jobs: int = 2_000
    in_flight: int = 32
    stamped_lines: int = 1_000
    chatty_lines: int = 1_000_000
    followers: int = 100
    follow_seconds: int = 10
    idle_jobs: int = 50
    idle_followers: int = 200
    ended_jobs: int = 10_000
    call_seconds: float = 5.0


FULL = Sizes()
QUICK = Sizes(
    log_bytes=1 << 20,
    capture_bytes=1 << 20,
    cold_starts=1,
    short_jobs=10,
    stamped_lines=20,
    chatty_lines=2_000,
    followers=5,
    follow_seconds=1,
    idle_jobs=2,
    idle_followers=2,
    ended_jobs=100,
    call_seconds=1.0,
)
