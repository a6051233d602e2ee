"""Limits are lowered until all that they permit fits into the descriptors that there are."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from workerd.descriptors import LEAST, RESERVED, fit, needed, warn_of_lowered
from workerd.errors import TooFewDescriptors
from workerd.limits import DEFAULT_LIMITS, Limits

AMOUNTS = st.integers(0, 100_000)


@given(
    most=st.integers(LEAST, 1 << 20),
    limits=st.builds(
        Limits,
        max_connections=AMOUNTS,
        max_connections_per_user=AMOUNTS,
        max_handshakes=AMOUNTS.map(lambda amount: amount + 1),
        max_streams=AMOUNTS,
        max_streams_per_user=AMOUNTS,
        max_starting=AMOUNTS.map(lambda amount: amount + 1),
    ),
)
def test_limits_fit_and_none_is_raised(most: int, limits: Limits) -> None:
    fitting = fit(limits, most)
    assert needed(fitting) <= most
    for each in dataclasses.fields(Limits):
        was, now = getattr(limits, each.name), getattr(fitting, each.name)
        assert was in (0, now) or 0 < now < was, each.name
    for name in ("max_connections", "max_handshakes", "max_streams", "max_starting"):
        assert getattr(fitting, name) > 0, "any amount does not fit"
    if RESERVED + max(needed(limits) - RESERVED, 0) <= most and limits.max_connections and limits.max_streams:
        assert fitting == limits


def test_what_takes_few_descriptors_is_not_lowered_for_what_takes_many() -> None:
    few = dataclasses.replace(DEFAULT_LIMITS, max_connections=20, max_handshakes=3, max_streams=100_000)
    fitting = fit(few, 1024)
    assert (fitting.max_connections, fitting.max_handshakes) == (20, 3)
    assert fitting.max_streams > 100


def test_one_user_does_not_get_all_of_what_was_lowered() -> None:
    fitting = fit(DEFAULT_LIMITS, LEAST)
    assert 2 * fitting.max_connections_per_user <= fitting.max_connections
    assert 2 * fitting.max_streams_per_user <= fitting.max_streams


def test_too_few_descriptors_are_an_error_that_says_how_to_get_more() -> None:
    with pytest.raises(TooFewDescriptors, match=r"RLIMIT_NOFILE.*LimitNOFILE="):
        fit(DEFAULT_LIMITS, LEAST - 1)


def test_a_warning_names_what_was_lowered_and_the_limit_of_the_kernel() -> None:
    with capture_logs() as told:
        warn_of_lowered(DEFAULT_LIMITS, fit(DEFAULT_LIMITS, 1024), 1024)
        warn_of_lowered(DEFAULT_LIMITS, fit(DEFAULT_LIMITS, 1 << 20), 1 << 20)
    [line] = told
    assert "RLIMIT_NOFILE" in line["event"] and "LimitNOFILE=" in line["event"]
    assert line["--max-streams"] < DEFAULT_LIMITS.max_streams
    assert line["descriptors"] == 1024 < line["needed"]
