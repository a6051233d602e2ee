"""Lengths of time on the command line."""

from datetime import timedelta

import pytest
from cyclopts import Token
from hypothesis import given
from hypothesis import strategies as st

from workerctl.durations import parse_duration, read_seconds
from workerctl.errors import UsageInvalid

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@given(st.integers(1, 10**8), st.sampled_from(sorted(SECONDS)))
def test_number_and_unit_are_a_length_of_time(number: int, unit: str) -> None:
    assert parse_duration("--ttl", f"{number}{unit}") == timedelta(seconds=number * SECONDS[unit])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0s",
        "15",
        "m",
        "-5m",
        "+5m",
        "1.5h",
        "1w",
        "5 m",
        " 5m",
        "5m\n",
        "5M",
        "1h30m",
        "9" * 5000 + "d",
        "\N{ARABIC-INDIC DIGIT FIVE}m",
    ],
)
def test_what_is_no_length_of_time_is_a_mistake(text: str) -> None:
    with pytest.raises(UsageInvalid, match=r"^--ttl .{,50} is no length of time: give a number and s, m, h or d"):
        parse_duration("--ttl", text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("1.5", 1.5), ("inf", float("inf")), ("0m", 0), ("1m", 60), ("15m", 900), ("2h", 7200)],
)
def test_seconds_may_be_given_as_a_number_or_with_a_unit(text: str, seconds: float) -> None:
    assert read_seconds(float, [Token(keyword="--timeout-seconds", value=text)]) == seconds


@pytest.mark.parametrize("text", ["", "1x", "m", "1.5h", "1h30m", "5 m", "9" * 5000 + "d"])
def test_what_is_neither_seconds_nor_a_length_of_time_is_a_mistake(text: str) -> None:
    with pytest.raises(UsageInvalid, match=r"^--grace-seconds .{,50} is no length of time: give seconds, or a number"):
        read_seconds(float, [Token(keyword="--grace-seconds", value=text)])
