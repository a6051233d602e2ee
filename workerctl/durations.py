"""Lengths of time as people write them: a number and a unit, such as 15m, or a number of seconds."""

import re
from datetime import timedelta

from workerctl.errors import UsageInvalid

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LENGTH = re.compile(rf"([0-9]+)([{''.join(_UNITS)}])")


def parse_duration(option: str, text: str) -> timedelta:
    """Read a length of time.

    Args:
        option: where it was given, for people.
        text: as it was given.

    Raises:
        UsageInvalid: it is none, or nothing at all, or longer than anybody can count.
    """
    found = _LENGTH.fullmatch(text)
    try:
        length = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found is not None else timedelta()
    except (OverflowError, ValueError):  # int() reads so many digits only
        length = timedelta()
    if length <= timedelta():
        raise UsageInvalid(f"{option} {text[:40]!r} is no length of time: give a number and s, m, h or d, such as 15m")
    return length


def to_duration(option: str, seconds: float) -> timedelta:
    """Make a length of time of an option's seconds.

    Raises:
        UsageInvalid: it is not a number that can be waited for.
    """
    try:
        return timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise UsageInvalid(f"{option} {seconds} is no number of seconds that can be waited for") from None
