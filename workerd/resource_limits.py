"""The resource limits of the daemon's own processes (getrlimit(2)), which they inherit where the daemon is started."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from workerd.engine.files import max_file_bytes
from workerd.engine.storage import MIN_LOG_BYTES
from workerd.errors import FileSizeLimited
from workerd.limits import Limits

log = structlog.get_logger()
_RAISED = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC")
_ANY_AMOUNT = 1 << 63


@dataclass(frozen=True, slots=True)
class Shortage:
    """A hard limit that is too low for the daemon.

    Attributes:
        name: as getrlimit(2) has it.
        value: in the unit that getrlimit(2) has for it.
        effect: what it leads to, as a clause.
    """

    name: str
    value: int
    effect: str


def raise_soft_limits() -> None:
    """Raise the soft limits of this process, and of what it starts, as far as the hard limits allow.

    The hard limits are the operator's. A job has soft limits of its own (`workerd.engine.start_state`).

    Raises:
        FileSizeLimited: the daemon cannot work with the hard limit of a file's size.
    """
    for name in _RAISED:
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        resource.setrlimit(number, (hard, hard))
    if (limit := max_file_bytes()) is not None and limit < MIN_LOG_BYTES:
        raise FileSizeLimited(limit, MIN_LOG_BYTES)


def max_descriptors() -> int:
    """Return how many descriptors this process may have, and each process that it starts."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft


def warn_of_shortages(limits: Limits) -> None:
    """Warn of each hard limit that is too low for the daemon."""
    for shortage in find_shortages(limits):
        log.warning(
            f"a resource limit is low: {shortage.effect}; raise the hard limit and start the daemon again",
            limit=shortage.name,
            value=shortage.value,
        )


def find_shortages(limits: Limits) -> Iterator[Shortage]:
    """Look for hard limits that are too low for the daemon.

    Args:
        limits: what users may have. One user who has all of it must leave something for the others.
    """
    wanted = {
        "RLIMIT_AS": (_ANY_AMOUNT, "calls fail when the daemon needs more memory"),
        "RLIMIT_CPU": (_ANY_AMOUNT, "the kernel kills the daemon, or a job's supervisor, after so many seconds"),
        "RLIMIT_DATA": (_ANY_AMOUNT, "calls fail when the daemon needs more memory"),
        "RLIMIT_FSIZE": (_ANY_AMOUNT, "a job's log ends when its file has so many bytes"),
        "RLIMIT_NPROC": (2 * limits.max_jobs_per_user, "one user may take all processes of the daemon's account"),
    }
    for name, (least, effect) in wanted.items():
        _, hard = resource.getrlimit(getattr(resource, name))
        if hard != resource.RLIM_INFINITY and hard < least:
            yield Shortage(name, hard, effect)
