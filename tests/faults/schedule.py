"""What happens in a run, and in which order: a pure function of the seed."""

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


class Kind(enum.StrEnum):
    """What can be done to the daemon, to what belongs to it, and to its clients."""

    DAEMON_KILL = "daemon killed"
    DAEMON_RESTART = "daemon restarted"
    DAEMON_PAUSE = "daemon paused"
    API_KILL = "API process killed"
    CATALOG_DELETE = "catalogue deleted"
    ZYGOTE_KILL = "zygote killed"
    ZYGOTE_PAUSE = "zygote paused"
    SUPERVISOR_KILL = "supervisor killed"
    SUPERVISOR_PAUSE = "supervisor paused"
    CLIENT_KILL = "client killed"
    CLIENT_PAUSE = "client paused"
    CUT_ALL = "all connections cut"
    RESET_ALL = "all connections reset"
    STALL_ALL = "all connections stalled"
    TRUNCATE = "connection truncated"
    TRUNCATE_NEXT = "new connection truncated"


# How often each is done in a run: together some more than the 300 that a run must get done.
COUNTS: Mapping[Kind, int] = {
    Kind.DAEMON_KILL: 26,
    Kind.DAEMON_RESTART: 16,
    Kind.DAEMON_PAUSE: 20,
    Kind.API_KILL: 20,
    Kind.CATALOG_DELETE: 10,
    Kind.ZYGOTE_KILL: 26,
    Kind.ZYGOTE_PAUSE: 16,
    Kind.SUPERVISOR_KILL: 8,
    Kind.SUPERVISOR_PAUSE: 34,
    Kind.CLIENT_KILL: 40,
    Kind.CLIENT_PAUSE: 40,
    Kind.CUT_ALL: 18,
    Kind.RESET_ALL: 18,
    Kind.STALL_ALL: 18,
    Kind.TRUNCATE: 60,
    Kind.TRUNCATE_NEXT: 28,
}
JOBS = 60
_FOLLOWERS_PER_JOB = 3
_REPEATS = 20
_LONGEST_GAP_SECONDS = 0.8  # between two faults
_HANDSHAKE_BYTES = 6_000  # about what TLS and HTTP/2 need before the first call's answer
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class StartJob:
    """Start the program `babble` as a job.

    Attributes:
        number: counts the jobs.
        seed, size_bytes, seconds, exit_code: what `babble` is told.
        by: through the library's `spawn`, or with a `workerctl run` that stays as a follower.
        direct: past the proxy.
    """

    number: int
    seed: int
    size_bytes: int
    seconds: float
    exit_code: int
    by: Literal["spawn", "run"]
    direct: bool


@dataclass(frozen=True, slots=True)
class StartFollower:
    """Follow a job's log with the library or with a `workerctl stream-log`.

    Attributes:
        job: its number.
        start: the part of the log, as it stands then, that is passed over, from 0 to 1.
        streams: what `--stream-type` takes; `raw` wherever the start is not the beginning.
        direct: past the proxy.
    """

    job: int
    by: Literal["library", "process"]
    start: float
    streams: Literal["raw", "stdout", "stderr"]
    direct: bool


@dataclass(frozen=True, slots=True)
class RepeatSpawn:
    """Make the spawn of an earlier job again, with its key.

    Attributes:
        job: its number.
    """

    job: int


@dataclass(frozen=True, slots=True)
class Strike:
    """Break something.

    Attributes:
        target: whom it hits: an index into those who are there, modulo their number.
        seconds: how long a pause, a stall or the time without a daemon lasts.
        after_bytes: how much a connection still passes on before it is truncated.
        upwards: whether these are the bytes to the daemon.
        reset: whether the truncated connection ends with RST instead of FIN.
    """

    kind: Kind
    target: int
    seconds: float
    after_bytes: int
    upwards: bool
    reset: bool


Action = StartJob | StartFollower | RepeatSpawn | Strike


@dataclass(frozen=True, slots=True)
class Step:
    """An action, and when it is due: seconds after the run's beginning, as long as nothing takes time itself."""

    at_seconds: float
    action: Action


def make_schedule(seed: int) -> tuple[Step, ...]:
    """Make a run of its seed: the same for the same seed, and all faults of `COUNTS` in it."""
    source = random.Random(seed)
    strikes = _strikes(source)
    duration = strikes[-1].at_seconds
    steps = [*strikes]
    for number in range(JOBS):
        begin = duration * 0.95 * number / JOBS
        job = _job(source, number)
        steps.append(Step(begin, job))
        steps += [
            Step(begin + source.uniform(0.0, 1.2) * job.seconds, _follower(source, number))
            for _ in range(source.randint(0, 2 * _FOLLOWERS_PER_JOB))
        ]
    for _ in range(_REPEATS):
        at = source.uniform(0.1, 1.0)
        steps.append(Step(at * duration, RepeatSpawn(source.randrange(round(at * JOBS)))))
    return tuple(sorted(steps, key=lambda step: step.at_seconds))


def _strikes(source: random.Random) -> list[Step]:
    kinds = [kind for kind, count in COUNTS.items() for _ in range(count)]
    source.shuffle(kinds)
    at = 2.0
    steps = []
    for kind in kinds:
        at += source.uniform(0.0, _LONGEST_GAP_SECONDS)
        early = source.randrange(_HANDSHAKE_BYTES)
        strike = Strike(
            kind=kind,
            target=source.randrange(1 << 16),
            seconds=source.choice((0.0, source.uniform(0.1, 2.0))),
            after_bytes=early if kind is Kind.TRUNCATE_NEXT else source.choice((early, source.randrange(_MB))),
            upwards=source.random() < 0.2,
            reset=source.random() < 0.5,
        )
        steps.append(Step(at, strike))
    return steps


def _job(source: random.Random, number: int) -> StartJob:
    return StartJob(
        number=number,
        seed=source.randrange(1 << 32),
        size_bytes=source.randrange(6 * _MB),
        seconds=source.uniform(0.1, 40.0),
        exit_code=source.choice((0, source.randint(1, 120))),  # workerctl's own codes come after
        by="run" if source.random() < 0.3 else "spawn",
        direct=source.random() < 0.3,
    )


def _follower(source: random.Random, job: int) -> StartFollower:
    start = source.choice((0.0, source.random()))
    return StartFollower(
        job=job,
        by=source.choice(("library", "process")),
        start=start,
        streams="raw" if start else source.choice(("raw", "stdout", "stderr")),
        direct=source.random() < 0.3,
    )
