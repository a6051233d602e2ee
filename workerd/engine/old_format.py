"""Job folders of formats 1 and 2, as earlier versions wrote them: read, brought to their end, and never made.

    spec      what was asked, by whom, when (JSON)
    lock      held with flock(2) for as long as a process watches over the job
    status    where the job stands (JSON), replaced by its supervisor
    fault     what went wrong inside the supervisor; usually absent
    told      what `control` becomes when the job's end has been told

A supervisor of an earlier version goes on writing these after an update of the daemon.
"""

import contextlib
import os
from pathlib import Path

import msgspec

from workerd.engine.errors import FormatTooNew, SpoolCorrupt
from workerd.engine.files import read_whole, replacing
from workerd.engine.identity import Version
from workerd.engine.job import JobSpec, JobState, JobStatus, User
from workerd.engine.journal import Journal

NEWEST_OLD = 2


class _Owned(msgspec.Struct):
    """The field of a spec that says whose job it is."""

    owner: User


def read_old(path: Path) -> Journal:
    """Read what a folder says of its job, as a journal would.

    Args:
        path: of the folder.

    Raises:
        FileNotFoundError: there is no such folder, or no job in it.
        FormatTooNew: a newer workerd made it.
        SpoolCorrupt: it is damaged.
    """
    faults: tuple[str, ...] = ()
    with contextlib.suppress(FileNotFoundError):
        faults = (read_whole(path / "fault").decode(errors="replace"),)
    return Journal(
        spec=_read_spec(path / "spec"),
        status=_read_status(path / "status"),
        is_told=(path / "told").exists(),
        faults=faults,
    )


def read_old_owner(path: Path) -> User | None:
    """Read whose job it is, whatever else is damaged or too new; None when that cannot be read either.

    Args:
        path: of the folder.
    """
    try:
        return msgspec.json.decode(read_whole(path / "spec"), type=_Owned).owner
    except (FileNotFoundError, SpoolCorrupt, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_old_status(path: Path, status: JobStatus) -> None:
    """Replace where a job stands."""
    with replacing(path / "status") as file:
        file.write(msgspec.json.encode(status))


def mark_old_told(path: Path) -> None:
    """Note that a job's end has been told: the pipe that took orders is renamed, which a full disk cannot refuse."""
    with contextlib.suppress(FileExistsError):  # unless its supervisor vanished before it made one
        os.mkfifo(path / "control", 0o600)
    os.rename(path / "control", path / "told")


def _read_spec(path: Path) -> JobSpec:
    data = read_whole(path)
    try:
        version = msgspec.json.decode(data, type=Version).format
        if version > NEWEST_OLD:
            raise FormatTooNew(path, version)
        return msgspec.json.decode(data, type=JobSpec)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SpoolCorrupt(path, str(error)) from error


def _read_status(path: Path) -> JobStatus | None:
    try:
        data = read_whole(path)
    except FileNotFoundError:
        return None
    if not data.strip(b"\0"):  # a power cut took it: no process watches over the job
        return JobStatus(state=JobState.STARTING)
    try:
        status = msgspec.json.decode(data, type=JobStatus)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SpoolCorrupt(path, str(error)) from error
    if (status.end is None) is (status.state is JobState.ENDED):
        raise SpoolCorrupt(path, "it has an end and has not ended, or the other way round")
    return status
