"""Which ended jobs have to go. Pure: what there is and what is allowed in, what goes out."""

from collections.abc import Sequence

from workerd.engine.catalog import EndedJob
from workerd.engine.storage import Storage

_GROWTH_SECONDS = 60.0  # how long the growth of running jobs may go unnoticed


def choose_removals(ended: Sequence[EndedJob], other_bytes: int, storage: Storage, now_ns: int) -> list[str]:
    """Choose the jobs to remove.

    Args:
        ended: all jobs that have ended, those that ended first at the beginning.
        other_bytes: what all other jobs take on the disk.
        storage: what is allowed.
        now_ns: nanoseconds since the epoch.

    Returns:
        Their ids, those that ended first at the beginning.
    """
    total = other_bytes + sum(job.disk_bytes for job in ended)
    chosen: list[str] = []
    for job in ended:
        too_old = storage.max_age_seconds > 0 and now_ns - job.ended_ns > storage.max_age_seconds * 1e9
        too_much = 0 < storage.max_total_bytes < total
        if not (too_old or too_much):
            break
        chosen.append(job.id)
        total -= job.disk_bytes
    return chosen


def seconds_until_next(ended: Sequence[EndedJob], storage: Storage, now_ns: int) -> float | None:
    """Tell after how long to choose again, though no job may have ended meanwhile; None for never.

    Args:
        ended: the jobs that are left, those that ended first at the beginning.
    """
    waits = [_GROWTH_SECONDS] if storage.max_total_bytes > 0 else []
    if storage.max_age_seconds > 0 and ended:
        waits.append(max(0.1, ended[0].ended_ns / 1e9 + storage.max_age_seconds - now_ns / 1e9))
    return min(waits, default=None)
