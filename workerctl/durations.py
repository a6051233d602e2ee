"""Lengths of time as people write them: a number and a unit, such as 15m, or a number of seconds."""

import contextlib
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from cyclopts import Token

from workerctl.errors import UsageInvalid

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_FORM = "a number and s, m, h or d, such as 15m"
_LENGTH = re.compile(rf"([0-9]+)([{''.join(_UNITS)}])")


def parse_duration(option: str, text: str) -> timedelta:
    """Read a length of time.

    Args:
        option: where it was given, for people.
        text: as it was given.

    Raises:
        UsageInvalid: it is not a duration, not positive, or too large.
    """
    length = _read(text)
    if not length:
        raise UsageInvalid(f"{option} {text[:40]!r} is no length of time: give {_FORM}")
    return length


def read_seconds(kind: Any, tokens: Sequence[Token]) -> float:
    """Read the value of an option that takes seconds, or a number and a unit. A converter for cyclopts.

    Raises:
        UsageInvalid: it is neither.
    """
    del kind
    (token,) = tokens
    with contextlib.suppress(ValueError):
        return float(token.value)
    length = _read(token.value)
    if length is None:
        raise UsageInvalid(f"{token.keyword} {token.value[:40]!r} is no length of time: give seconds, or {_FORM}")
    return length.total_seconds()


def to_duration(option: str, seconds: float) -> timedelta:
    """Make a length of time of an option's seconds.

    Raises:
        UsageInvalid: it is not a number that can be waited for.
    """
    try:
        return timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise UsageInvalid(f"{option} {seconds} is no number of seconds that can be waited for") from None


def _read(text: str) -> timedelta | None:
    found = _LENGTH.fullmatch(text)
    if found is None:
        return None
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except (OverflowError, ValueError):  # int() reads so many digits only
        return None
