"""When a call is made again, and when it is given up."""

import time

import pytest

from workerctl.errors import UsageInvalid
from workerctl.retry import Attempts, Patience


class Clock:
    """A clock that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def fail_until_given_up(attempts: Attempts, clock: Clock, *, acquainted: bool) -> list[float]:
    """Let each attempt fail at once, and give the pauses."""
    pauses = []
    while (pause := attempts.failed(None, acquainted=acquainted)) is not None:
        pauses.append(pause)
        clock.now += pause
        attempts.again()
        assert len(pauses) < 1000
    return pauses


def test_pauses_grow_are_bounded_and_end_in_time(clock: Clock) -> None:
    pauses = fail_until_given_up(Attempts(Patience(retry_seconds=60)), clock, acquainted=True)
    assert sum(pauses) == pytest.approx(60)
    assert 0.05 <= pauses[0] <= 0.1
    assert max(pauses) <= 5
    assert 12 < len(pauses) < 40


def test_two_clients_do_not_pause_alike(clock: Clock) -> None:
    first, second = (fail_until_given_up(Attempts(Patience()), clock, acquainted=True) for _ in range(2))
    assert first != second


def test_before_the_first_contact_little_time_is_spent(clock: Clock) -> None:
    assert sum(fail_until_given_up(Attempts(Patience()), clock, acquainted=False)) == pytest.approx(2)


def test_an_answer_begins_the_time_anew(clock: Clock) -> None:
    attempts = Attempts(Patience(retry_seconds=60))
    attempts.failed(None, acquainted=True)
    clock.now += 50
    attempts.again()
    attempts.succeeded()
    clock.now += 50
    assert attempts.failed(clock.now, acquainted=True) is not None


def test_a_connection_that_stood_for_a_while_begins_the_time_anew(clock: Clock) -> None:
    """A follower of a job that prints nothing, over a network that cuts it now and then."""
    attempts = Attempts(Patience(retry_seconds=60))
    for _ in range(100):
        clock.now += 30
        assert attempts.failed(clock.now, acquainted=True) is not None
        assert attempts.first_failure
        attempts.again()


def test_connections_that_break_at_once_do_not(clock: Clock) -> None:
    attempts = Attempts(Patience(retry_seconds=60))
    for _ in range(100):
        clock.now += 1
        if attempts.failed(clock.now, acquainted=True) is None:
            break
        attempts.again()
    assert attempts.tried_seconds == pytest.approx(60, abs=2)


@pytest.mark.parametrize("values", [(-1, 20), (float("nan"), 20), (60, 0), (60, float("inf")), (60, float("nan"))])
def test_impossible_times_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(UsageInvalid, match="-seconds"):
        Patience(*values)
