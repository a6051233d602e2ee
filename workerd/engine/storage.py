"""How much of the disk jobs may take, for how long, and how soon what they print is safe from a power cut."""

import contextlib
import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from workerd.engine import linux
from workerd.engine.errors import StorageUnfit
from workerd.engine.job import Durability

MIN_LOG_BYTES = 4 << 20
DEFAULT_MAX_LOG_BYTES = 10 << 30
_TOTAL_PERCENT = 80  # the rest is for what runs, the audit trail and other programs


@dataclass(frozen=True, slots=True)
class Storage:
    """What an engine keeps of its jobs.

    Attributes:
        max_log_bytes: how much of the disk one log may take, at least MIN_LOG_BYTES; zero for any amount. Beyond it the
            oldest output is released.
        max_total_bytes: how much all jobs together may take; zero for any amount. Beyond it the jobs that ended first
            are removed; a job that runs never is.
        max_age_seconds: how long after its end a job is removed; zero for never.
        durability: when logs are forced to the disk.
    """

    max_log_bytes: int = DEFAULT_MAX_LOG_BYTES
    max_total_bytes: int = 0
    max_age_seconds: float = 0.0
    durability: Durability = Durability.INTERVAL


DEFAULT_STORAGE = Storage()


def default_total_bytes(directory: Path) -> int:
    """Return how much of the disk all jobs together may take unless it is set; zero where the disk has no size.

    It is a share of the file system's size, and not of what is free: what others write there removes no job.

    Args:
        directory: the state directory, which need not exist yet.
    """
    there = next(path for path in (directory, *directory.absolute().parents) if os.path.exists(path))
    found = os.statvfs(there)
    return found.f_blocks * found.f_frsize * _TOTAL_PERCENT // 100


def check_file_system(directory: Path) -> None:
    """Check that parts of a file in a directory can be released.

    Raises:
        StorageUnfit: they cannot.
    """
    if (problem := _refusal(directory)) is not None:
        raise StorageUnfit(directory, problem)


def can_limit_logs(directory: Path) -> bool:
    """Return whether parts of a file in a directory can be released, as a log with a limit needs it."""
    return _refusal(directory) is None


def _refusal(directory: Path) -> str | None:
    """Release a part of a file; return why the file system does not do that, if it does not."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(1 << 16))
        file.flush()
        try:
            linux.punch_hole(file.fileno(), 0, 1 << 15)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return str(error.strerror)
    return None


def disk_bytes(folder: Path) -> int:
    """Return how much of the disk the files in a job's folder take, in bytes; the job may run.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    blocks = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # it was renamed or removed since
                blocks += entry.stat(follow_symlinks=False).st_blocks
    return blocks * 512  # stat(2): units of 512
