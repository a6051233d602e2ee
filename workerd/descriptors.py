"""How many descriptors a process of the daemon needs at most, so that it never lacks one (getrlimit(2), RLIMIT_NOFILE).

Everything of which there may be very many has a limit: connections, streams, jobs that are being started. The rest has
a fixed size, and `RESERVED` for it. Limits that do not fit are lowered at the start, so no code has to deal with the
lack of a descriptor in one place of the daemon because of what was permitted in another.
"""

import dataclasses
import math
from dataclasses import dataclass

import structlog

from workerd.errors import TooFewDescriptors
from workerd.limits import Limits

log = structlog.get_logger()

RESERVED = 192
"""What a process has open besides: some 45 at rest, three or so for each of its threads, and those of single steps."""

LEAST = 256
"""With fewer, the limits would be too low for two users."""

_PART_OF_ONE_USER = 4  # of a limit that was lowered, one user has at most so great a part


@dataclass(frozen=True, slots=True)
class _Use:
    """What one of something needs.

    Attributes:
        limit: the field of `Limits`.
        descriptors: how many each takes.
        weight: the share of the descriptors that it is left, where there are not enough for all.
        of_user: the field of `Limits` for one user.
    """

    limit: str
    descriptors: int
    weight: int
    of_user: str = ""


_USES = (
    _Use("max_connections", 1, 4, of_user="max_connections_per_user"),
    _Use("max_handshakes", 1, 1),
    _Use("max_streams", 2, 8, of_user="max_streams_per_user"),  # the index of a log, and its output
    # The lock and the supervisor's answer; and for a quarter of so many jobs, that are lost and brought to their end,
    # the lock, and handles of processes that were killed (`workerd.engine.tree.MOST_HELD`).
    _Use("max_starting", 5, 2),
)


def fit(limits: Limits, most: int) -> Limits:
    """Lower limits until all that they permit fits into a number of descriptors.

    Args:
        most: that number, for one process.

    Raises:
        TooFewDescriptors: the daemon cannot work with so few.
    """
    if most < LEAST:
        raise TooFewDescriptors(most, LEAST)
    fitting = _share_out(limits, most - RESERVED)
    changes: dict[str, int] = {}
    for use in _USES:
        wanted, fits = getattr(limits, use.limit), fitting[use]
        if 0 < wanted <= fits:
            continue
        changes[use.limit] = fits
        if use.of_user:
            of_user, part = getattr(limits, use.of_user), max(1, fits // _PART_OF_ONE_USER)
            changes[use.of_user] = min(of_user or part, part)
    return dataclasses.replace(limits, **changes)


def warn_of_lowered(wanted: Limits, fitting: Limits, most: int) -> None:
    """Warn of limits that were lowered."""
    lowered = {
        f"--{each.name.replace('_', '-')}": getattr(fitting, each.name)
        for each in dataclasses.fields(Limits)
        if 0 < getattr(fitting, each.name) < getattr(wanted, each.name)
    }
    if lowered:
        log.warning(
            "limits are lowered to what the descriptors suffice for: raise the hard limit RLIMIT_NOFILE, with"
            " `ulimit -n` in the shell or LimitNOFILE= in the unit, and start the daemon again",
            descriptors=most,
            needed=needed(wanted),
            **lowered,
        )


def needed(limits: Limits) -> int:
    """Return how many descriptors a process needs for all that limits permit, those without a limit left aside."""
    return RESERVED + sum(int(getattr(limits, use.limit)) * use.descriptors for use in _USES)


def _share_out(limits: Limits, left: int) -> dict[_Use, int]:
    """Return how many of each there can be: as many as wanted, or a share of what the others leave."""
    fitting: dict[_Use, int] = {}
    open_uses = list(_USES)
    while open_uses:
        unit = left / sum(use.weight for use in open_uses)
        modest = [use for use in open_uses if _wanted(limits, use) <= unit * use.weight]
        for use in modest or open_uses:
            share = _wanted(limits, use) if modest else unit * use.weight
            fitting[use] = max(1, int(share // use.descriptors))
        taken = modest or open_uses
        left -= sum(fitting[use] * use.descriptors for use in taken)
        open_uses = [use for use in open_uses if use not in taken]
    return fitting


def _wanted(limits: Limits, use: _Use) -> float:
    return (getattr(limits, use.limit) or math.inf) * use.descriptors
