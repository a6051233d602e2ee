"""Fitting the limits to the descriptors of a process, so that it never runs out of them (getrlimit(2), RLIMIT_NOFILE).

What can be numerous has a limit: connections, streams, jobs that are being started. `RESERVED` is for all else. Limits
that permit too much are lowered at the start, so no other code handles a lack of descriptors.
"""

import dataclasses
import math
from dataclasses import dataclass

import structlog

from workerd.errors import TooFewDescriptors
from workerd.limits import Limits

log = structlog.get_logger()

RESERVED = 192
"""For what has no limit: a process at rest, its threads, and files that are open for a moment."""

LEAST = 256
"""With fewer descriptors, the limits would be too low for two users."""

_PART_OF_ONE_USER = 4  # one user gets at most this fraction of a lowered limit


@dataclass(frozen=True, slots=True)
class _Use:
    """A limit that bounds a number of descriptors.

    Attributes:
        limit: the field of `Limits`.
        descriptors: how many each takes that the limit counts.
        weight: its share of the descriptors if there are too few for all limits.
        of_user: the field of `Limits` for one user; empty if there is none.
    """

    limit: str
    descriptors: int
    weight: int
    of_user: str = ""


_USES = (
    _Use("max_connections", 1, 4, of_user="max_connections_per_user"),
    _Use("max_handshakes", 1, 1),
    _Use("max_streams", 2, 8, of_user="max_streams_per_user"),  # the index of a log, and its output
    # A job's lock and its supervisor's answer. A quarter as many lost jobs are being ended (`JobLimits.max_ending`),
    # each with a lock and up to `workerd.engine.tree.MOST_HELD` handles of killed processes.
    _Use("max_starting", 5, 2),
)


def fit(limits: Limits, most: int) -> Limits:
    """Return limits that are lowered until all that they permit fits into the descriptors of one process.

    Args:
        most: how many descriptors the process may have.

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
            "limits are lowered, as there are too few descriptors: raise the hard limit RLIMIT_NOFILE, with"
            " `ulimit -n` in the shell or LimitNOFILE= in the unit, and start the daemon again",
            descriptors=most,
            needed=needed(wanted),
            **lowered,
        )


def needed(limits: Limits) -> int:
    """Return how many descriptors a process needs for all that limits permit; a limit of zero counts as none."""
    return RESERVED + sum(int(getattr(limits, use.limit)) * use.descriptors for use in _USES)


def _share_out(limits: Limits, left: int) -> dict[_Use, int]:
    """Return the fitting limits: as wanted, or a share of the descriptors that the others leave."""
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
