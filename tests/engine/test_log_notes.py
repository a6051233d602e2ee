"""How often a job's journal gets a record that its log waits for room, or does not."""

from dataclasses import dataclass

from workerd.engine.job import JobState, JobStatus
from workerd.engine.log_notes import LogNotes

DAY_SECONDS = 86_400


@dataclass
class Log:
    """The part of a capture that `LogNotes` reads."""

    waits_for_room: bool = False
    ended_early: str = ""


def test_a_log_that_waits_for_room_each_other_second_is_seldom_recorded_in_the_long_run() -> None:
    """A journal is read as a whole, and may have 64 MiB; a record takes some three hundred bytes."""
    log = Log()
    notes = LogNotes(log)  # type: ignore[arg-type]
    status, records = JobStatus(state=JobState.RUNNING), []
    for second in range(7 * DAY_SECONDS):
        log.waits_for_room = second % 2 == 0
        if changes := notes.due(status, float(second)):
            status = JobStatus(state=JobState.RUNNING, **changes)  # type: ignore[arg-type]
            records.append(second)
    assert records[:3] == [0, 1, 4]
    assert len(records) < 3000


def test_the_state_in_which_a_log_stays_is_recorded_when_it_is_time() -> None:
    log = Log()
    notes = LogNotes(log)  # type: ignore[arg-type]
    free, waiting = JobStatus(state=JobState.RUNNING), JobStatus(state=JobState.RUNNING, waits_for_room=True)
    log.waits_for_room = True
    assert notes.due(free, 100.0)["waits_for_room"] is True
    log.waits_for_room = False
    assert not notes.due(waiting, 100.5)
    assert notes.next_time == 101.0
    assert notes.due(waiting, notes.next_time)["waits_for_room"] is False
    assert not notes.due(free, 102.0)
    assert notes.next_time == float("inf")


def test_a_log_that_has_ended_early_is_recorded_at_once() -> None:
    log = Log(waits_for_room=True)
    notes = LogNotes(log)  # type: ignore[arg-type]
    free, waiting = JobStatus(state=JobState.RUNNING), JobStatus(state=JobState.RUNNING, waits_for_room=True)
    assert notes.due(free, 100.0)
    log.ended_early = "its file system takes no larger file"
    assert notes.due(waiting, 100.1)["log_ended_early"] == log.ended_early
