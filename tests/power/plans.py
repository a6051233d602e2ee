"""The jobs of a scene: what is asked for, and what it prints."""

import sys
from collections.abc import Callable, Iterator
from functools import partial

from worker_api.worker.v1 import SpawnRequest

from tests.power import printer
from tests.power.ledger import Story
from workerd.engine.storage import MIN_LOG_BYTES

Plan = tuple[Story, SpawnRequest]
_SEQ = "/usr/bin/seq"
_SHELL = "/bin/sh"


def _sequence(first: int, last: int) -> Iterator[tuple[int, bytes]]:
    yield 1, b"".join(b"%d\n" % number for number in range(first, last + 1))


def _counting(kind: str, first: int, last: int) -> Plan:
    request = SpawnRequest(program=_SEQ, args=[str(first), str(last)], working_directory="/")
    return Story(kind, partial(_sequence, first, last)), request


def _printing(kind: str, number: int, lines: int, pause_seconds: float, streams: int = 1, count: int = 0) -> Plan:
    arguments = [str(number), str(lines), str(pause_seconds), str(streams), str(count)]
    request = SpawnRequest(
        program=sys.executable, args=["-S", printer.__file__, *arguments], working_directory="/", name=kind
    )
    return Story(kind, partial(printer.bursts, number, lines, streams, count)), request


def _silent(kind: str, script: str) -> Plan:
    request = SpawnRequest(program=_SHELL, args=["-c", script], working_directory="/", name=kind)
    return Story(kind, lambda: iter(())), request


def short(number: int) -> Plan:
    """Return a job that is over at once: most print a little, some nothing."""
    match number % 6:
        case 0:
            return _silent("short, silent", "exit 0")
        case 1:
            return _silent("short, fails", "exit 3")
        case _:
            return _counting("short", number, number + 200)


def medium(number: int) -> Plan:
    """Return a job that prints some hundred kilobytes as fast as it can."""
    return _counting("medium", number, number + 60_000)


def lasting(number: int) -> Plan:
    """Return a job that prints for some seconds and ends."""
    return _printing("lasting", number, lines=20, pause_seconds=0.01, streams=2, count=700)


def over_limit(number: int) -> Plan:
    """Return a job that prints more than is kept, and ends."""
    story, request = _printing("over its limit", number, lines=20_000, pause_seconds=0.05, count=40)
    story.limited = True
    request.max_log_bytes = MIN_LOG_BYTES
    return story, request


def _always_over_limit(number: int) -> Plan:
    story, request = _printing("always over its limit", number, lines=3_000, pause_seconds=0.05)
    story.limited = True
    request.max_log_bytes = MIN_LOG_BYTES
    return story, request


ENDLESS: tuple[Callable[[int], Plan], ...] = (
    partial(_printing, "steady", lines=20, pause_seconds=0.02),
    partial(_printing, "steady, both streams", lines=10, pause_seconds=0.02, streams=2),
    partial(_printing, "seldom, much", lines=20_000, pause_seconds=0.9),
    partial(_printing, "seldom, little", lines=1, pause_seconds=2.5),
    _always_over_limit,
)
"""Jobs that print until they are stopped."""
