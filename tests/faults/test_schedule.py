"""A schedule follows from its seed."""

from collections import Counter

from tests.faults.schedule import COUNTS, StartFollower, StartJob, Strike, make_schedule


def test_the_same_seed_gives_the_same_schedule_and_another_one_another() -> None:
    assert make_schedule(7) == make_schedule(7)
    assert make_schedule(7) != make_schedule(8)


def test_a_schedule_has_every_fault_as_often_as_it_should_and_all_in_order() -> None:
    steps = make_schedule(1)
    assert Counter(step.action.kind for step in steps if isinstance(step.action, Strike)) == COUNTS
    assert sum(COUNTS.values()) >= 300
    assert [step.at_seconds for step in steps] == sorted(step.at_seconds for step in steps)


def test_a_job_is_there_before_it_is_followed() -> None:
    started = set()
    for step in make_schedule(2):
        if isinstance(step.action, StartJob):
            started.add(step.action.number)
        elif isinstance(step.action, StartFollower):
            assert step.action.job in started
