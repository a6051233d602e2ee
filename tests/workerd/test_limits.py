"""What is counted is counted exactly, whatever comes in which order; and what cannot be is no setting."""

import contextlib
from collections import Counter
from dataclasses import fields
from typing import Any

import pytest
from grpclib.const import Status
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from worker_api.worker.v1 import ErrorReason

from workerd.engine.admission import Admission, Bucket, JobLimits
from workerd.engine.errors import RequestTooLarge, SpawnsTooFast, TooManyJobs
from workerd.engine.job import User
from workerd.engine.request import SpawnRequest
from workerd.errors import ConfigurationInvalid, LimitReached, to_grpc
from workerd.limits import Limits, Meter
from workerd.notices import Notices

ME = User("6ba7b810-9dad-41d1-80b4-00c04fd430c8", "me")
USERS = st.sampled_from(["ann", "bob", "eve"])
TINY = Limits(
    max_connections=4,
    max_connections_per_user=2,
    max_streams=4,
    max_streams_per_user=2,
    max_calls_per_user=2,
    max_request_bytes=2000,
)


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Metering(RuleBasedStateMachine):
    """Calls, connections and requests come and go in any order; the meter agrees with plain counters."""

    held: Any = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.meter = Meter(TINY)
        self.streams: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.connections: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def enter(self, context: contextlib.AbstractContextManager[None], fits: bool) -> contextlib.ExitStack | None:
        stack = contextlib.ExitStack()
        if fits:
            stack.enter_context(context)
            return stack
        with pytest.raises(LimitReached):
            stack.enter_context(context)
        return None

    def keep(self, stack: contextlib.ExitStack | None, counter: Counter[str], user: str, amount: int = 1) -> Any:
        if stack is not None:
            counter[user] += amount
            stack.callback(lambda: counter.subtract({user: amount}))
        return stack

    @rule(target=held, user=USERS)
    def open_stream(self, user: str) -> Any:
        fits = self.streams[user] < TINY.max_streams_per_user and self.streams.total() < TINY.max_streams
        return self.keep(self.enter(self.meter.call(user, streaming=True), fits), self.streams, user)

    @rule(target=held, user=USERS)
    def call(self, user: str) -> Any:
        fits = self.calls[user] < TINY.max_calls_per_user
        return self.keep(self.enter(self.meter.call(user, streaming=False), fits), self.calls, user)

    @rule(user=USERS, count=st.integers(1, 200))
    def accept(self, user: str, count: int) -> None:
        most = TINY.max_calls_per_user + TINY.max_streams_per_user + 100
        for _ in range(count):
            fits = self.accepted[user] < most
            assert self.meter.begin_call(user) == fits
            self.accepted[user] += fits

    @rule(user=USERS, count=st.integers(1, 200))
    def release(self, user: str, count: int) -> None:
        for _ in range(min(count, self.accepted[user])):
            self.meter.end_call(user)
            self.accepted[user] -= 1

    @rule(target=held, user=USERS, size=st.integers(0, 2500))
    def receive(self, user: str, size: int) -> Any:
        fits = size <= TINY.max_request_bytes and self.sizes[user] + size <= 4 * TINY.max_request_bytes
        return self.keep(self.enter(self.meter.receiving(user, size), fits), self.sizes, user, size)

    @rule(held=consumes(held))
    def end(self, held: contextlib.ExitStack | None) -> None:
        if held is not None:
            held.close()

    @rule(user=USERS)
    def connect(self, user: str) -> None:
        if self.connections[user] < TINY.max_connections_per_user and self.connections.total() < TINY.max_connections:
            self.meter.connect(user)
            self.connections[user] += 1
        else:
            with pytest.raises(LimitReached):
                self.meter.connect(user)

    @rule(user=USERS)
    def disconnect(self, user: str) -> None:
        if self.connections[user]:
            self.meter.disconnect(user)
            self.connections[user] -= 1

    @invariant()
    def room_is_what_is_left(self) -> None:
        assert self.meter.has_room() == (self.connections.total() < TINY.max_connections)


TestMetering = Metering.TestCase


def test_what_failed_within_counts_no_more() -> None:
    meter = Meter(TINY)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), meter.call("ann", streaming=True):
            raise ZeroDivisionError


def test_nothing_set_is_any_amount() -> None:
    meter = Meter(Limits(max_connections=0, max_connections_per_user=0, max_streams=0, max_streams_per_user=0))
    with contextlib.ExitStack() as stack:
        for _ in range(20_000):
            stack.enter_context(meter.call("ann", streaming=True))
            meter.connect("ann")
            assert meter.begin_call("ann")
        assert meter.has_room()


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), max_size=60), st.integers(1, 5), st.integers(4, 10))
def test_a_bucket_gives_no_more_than_its_burst_and_its_rate(
    wishes: list[tuple[float, int]], rate: int, burst: int
) -> None:
    bucket, now = Bucket(rate, burst), 0.0
    taken: list[tuple[float, int]] = []
    for pause, tokens in wishes:
        now += pause
        wait = bucket.take(now, tokens)
        if not wait:
            taken.append((now, tokens))
            for number, (begun, _) in enumerate(taken):  # in any time that ends now
                amount = sum(tokens for _, tokens in taken[number:])
                assert amount <= burst + rate * (now - begun) + 1e-6
        else:
            assert bucket.take(now + wait * 0.99 - 1e-9, tokens) > 0
            now += wait + 1e-9
            assert bucket.take(now, tokens) == 0
            taken.append((now, tokens))


def test_a_bucket_is_charged_down_to_nothing_and_up_to_its_burst() -> None:
    bucket = Bucket(1.0, 10.0)
    bucket.charge(0.0, 1e9)
    assert bucket.take(0.0) == pytest.approx(1.0)
    bucket.charge(0.0, -1e9)
    assert [bool(bucket.take(0.0)) for _ in range(11)] == [False] * 10 + [True]


def test_spawns_are_admitted_at_the_rate_and_each_owner_has_its_own() -> None:
    admission = Admission(JobLimits(max_spawns_per_second=2.0))
    mine, other = (SpawnRequest(owner=owner, program="true") for owner in (ME, User("other", "other")))
    for _ in range(20):
        admission.admit(mine, 5.0)
    with pytest.raises(SpawnsTooFast, match=r"faster than 2 per second .* again in 0\.5 s"):
        admission.admit(mine, 5.0)
    admission.admit(other, 5.0)
    admission.admit(mine, 5.5)
    admission.note_looks(ME.id, 1000, 20.0)
    with pytest.raises(SpawnsTooFast):
        admission.admit(mine, 20.0)


@pytest.mark.parametrize(
    ("args", "envs", "limit"),
    [
        (("a",) * 3, {}, None),
        (("a",) * 2, {"b": "c"}, None),
        (("a",) * 3, {"b": "c"}, "max-arguments"),
        (("x" * 14,), {}, None),  # with the program and two NULs: twenty
        (("x" * 15,), {}, "max-argument-bytes"),
        (("é" * 8,), {}, "max-argument-bytes"),
        ((), {"n": "x" * 12}, None),
        ((), {"n": "x" * 13}, "max-argument-bytes"),
    ],
)
def test_arguments_are_measured_as_the_kernel_does(
    args: tuple[str, ...], envs: dict[str, str], limit: str | None
) -> None:
    admission = Admission(JobLimits(max_arguments=3, max_argument_bytes=20))
    request = SpawnRequest(owner=ME, program="true", args=args, envs=envs)
    if limit is None:
        admission.admit(request, 0.0)
    else:
        with pytest.raises(RequestTooLarge) as caught:
            admission.admit(request, 0.0)
        assert caught.value.limit == limit


@pytest.mark.parametrize(
    "error",
    [
        LimitReached("max-streams", "5 streams of yours are open", "let some end"),
        TooManyJobs("max-jobs", "all users", 5),
        SpawnsTooFast(5.0, 0.2),
        RequestTooLarge("max-arguments", "6 arguments", 5),
    ],
)
def test_a_limit_is_told_with_its_name_and_what_to_do(error: LimitReached | TooManyJobs) -> None:
    answer = to_grpc(error)
    assert answer.status is Status.RESOURCE_EXHAUSTED
    [detail] = answer.details
    assert (detail.reason, detail.subject) == (ErrorReason.LIMIT_REACHED, error.limit)
    assert f"({error.limit}): " in (answer.message or "")


@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_what_cannot_be_is_no_limit(name: str, value: float) -> None:
    with pytest.raises(ConfigurationInvalid, match=f"--{name.replace('_', '-')} "):
        Limits(**{name: value}).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["max_request_bytes", "max_header_bytes", "max_handshakes", "handshake_seconds", "request_seconds"]
)
def test_some_cannot_be_nothing(name: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=f"--{name.replace('_', '-')} 0 "):
        Limits(**{name: 0}).check()


def test_every_limit_has_a_default_that_can_be_and_a_line_of_help() -> None:
    Limits().check()
    explained = {line.strip().partition(":")[0] for line in str(Limits.__doc__).splitlines()}
    assert {each.name for each in fields(Limits)} <= explained


def test_what_happens_often_is_told_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    notices = Notices(clock)
    for _ in range(1000):
        notices.warn("too many", "max-jobs")
        notices.warn("too fast", "max-spawns-per-second")
    clock.now += 60
    notices.warn("too many", "max-jobs")
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "too" in line]
    assert len(lines) == 3
    assert "untold_before" in lines[2] and "999" in lines[2]


@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
def test_what_cannot_be_told_or_compared_is_no_limit(name: str) -> None:
    """A daemon would start with it and fail at every call."""
    most = 2**32 - 1 if name == "max_header_bytes" else 2**63 - 1
    Limits(**{name: most}).check()
    with pytest.raises(ConfigurationInvalid, match=f"--{name.replace('_', '-')} .* cannot be: give {most} at most"):
        Limits(**{name: most * 2}).check()
