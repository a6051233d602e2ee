"""No user's calls push the lines of others out of the audit trail."""

from collections.abc import Mapping
from typing import Any

import pytest

from workerd.access import recorder as module
from workerd.access.recorder import LEFT_OUT, Recorder
from workerd.engine.job import User
from workerd.errors import AuditFailed

GREEDY, OTHER = User("1", "greedy"), User("2", "other")
LOOK = {"event": "decision", "verdict": "permit", "action": "status"}
CHANGE = {"event": "decision", "verdict": "permit", "action": "spawn"}
BURST = int(module._BURST_LINES)


class Trail:
    """A trail in memory, and a clock."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.urgent: list[bool] = []
        self.now = 100.0
        self.fails = False

    def record(self, event: Mapping[str, Any], *, urgent: bool = False) -> None:
        if self.fails:
            raise AuditFailed("No space left on device")
        self.lines.append(dict(event))
        self.urgent.append(urgent)


@pytest.fixture
def trail() -> Trail:
    return Trail()


@pytest.fixture
def recorder(trail: Trail) -> Recorder:
    return Recorder(trail.record, lambda: trail.now)


def test_looks_beyond_the_rate_are_counted_and_one_line_says_how_many(trail: Trail, recorder: Recorder) -> None:
    for _ in range(BURST + 300):
        recorder.record_some(GREEDY, LOOK)
    assert trail.lines == [LOOK] * BURST
    trail.now += 1
    recorder.record_some(GREEDY, LOOK)
    left_out = {"event": LEFT_OUT, "user": {"id": "1", "name": "greedy"}, "lines": 300}
    assert trail.lines[BURST:] == [left_out, LOOK]
    recorder.close()
    assert len(trail.lines) == BURST + 2


def test_what_changes_something_and_what_others_do_is_always_written(trail: Trail, recorder: Recorder) -> None:
    for _ in range(BURST + 1):
        recorder.record_some(GREEDY, LOOK)
    trail.lines.clear()
    recorder.record(CHANGE)
    recorder.record_some(OTHER, LOOK)
    assert trail.lines == [CHANGE, LOOK]


def test_what_was_left_out_is_told_when_another_calls_or_the_daemon_ends(trail: Trail, recorder: Recorder) -> None:
    for _ in range(BURST + 2):
        recorder.record_some(GREEDY, LOOK)
    trail.now += 10
    recorder.record_some(OTHER, LOOK)
    assert [line["event"] for line in trail.lines[BURST:]] == [LEFT_OUT, "decision"]
    for _ in range(BURST + 2):
        recorder.record_some(GREEDY, LOOK)
    recorder.close()
    assert trail.lines[-1]["event"] == LEFT_OUT


def test_a_count_that_cannot_be_written_is_written_later(trail: Trail, recorder: Recorder) -> None:
    for _ in range(BURST + 7):
        recorder.record_some(GREEDY, LOOK)
    trail.now += 1
    trail.fails = True
    with pytest.raises(AuditFailed):
        recorder.record(CHANGE)
    trail.fails = False
    trail.now += 1
    recorder.record(CHANGE, urgent=True)
    assert [line.get("lines") for line in trail.lines[BURST:]] == [7, None]
    assert trail.urgent[-1]
