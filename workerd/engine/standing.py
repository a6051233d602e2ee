"""How a job stands: what its journal and its log say together, also where damage or a power cut has left them.

An end counts only when both have it: it is written into the journal first, and told only when the log is complete.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass

import msgspec

from workerd.engine.catalog import Catalog
from workerd.engine.errors import EndMissing, JobNotFound, JournalDamaged, NeverForced, SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import Job, JobState, Share, User
from workerd.engine.journal import Journal
from workerd.engine.reader import Extent, measure
from workerd.engine.recovery import complete, has_end, has_output, measure_complete
from workerd.engine.shelf import Shelf

_MEND_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Found:
    """Whose job it is.

    Attributes:
        job_id: in lower case.
        owner: as far as it is known; the id or the name may be empty.
        shares: with whom it is shared; nobody where that cannot be read.
        journal: what was read to find out; None if that was damaged.
    """

    job_id: str
    owner: User
    shares: tuple[Share, ...]
    journal: Journal | None


def read_job(folder: JobFolder, catalog: Catalog, journal: Journal | None = None) -> Job:
    """Return how a job stands.

    Args:
        journal: the job's, if it has just been read.

    Raises:
        FileNotFoundError: there is no such folder.
        JobNotFound: nothing of the job was executed.
        SpoolCorrupt: it is damaged.
    """
    try:
        journal = journal or folder.read()
    except NeverForced:
        if has_end(folder) or has_output(folder):
            raise
        raise JobNotFound(folder.job_id) from None
    if journal.rest and not journal.ended and (journal.is_broken or folder.is_locked()):
        raise JournalDamaged(folder.journal, journal.size)
    if journal.spec is None or journal.status is None:
        if not folder.is_locked() and has_end(folder):
            raise EndMissing(folder.journal)
        raise JobNotFound(folder.job_id)
    status = journal.status
    extent = _measure_ended(folder, journal) if journal.ended else None
    if extent is None:
        if journal.ended:  # it is about to be told
            status = msgspec.structs.replace(status, state=JobState.STOPPING, end=None)
        extent = _measure(folder, catalog)
    if extent.ended and not journal.ended and not folder.read().ended:  # the end is in the journal first
        raise EndMissing(folder.journal)
    return Job(
        spec=journal.spec,
        status=status,
        stdout_bytes=extent.stdout,
        stderr_bytes=extent.stderr,
        kept_from=extent.kept_from,
    )


async def wait_readable(folder: JobFolder, shelf: Shelf) -> None:
    """Wait until the keeper has mended a log that a power cut left and that cannot be read before."""
    if _is_readable(folder):
        return
    with shelf.watcher.watch(folder.path) as changed, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MEND_SECONDS):
            while not _is_readable(folder) and _is_about_to_be_mended(folder, shelf.catalog):
                await changed.wait()
                changed.clear()


def _is_readable(folder: JobFolder) -> bool:
    """Return whether the job's log can be measured."""
    try:
        measure(folder)
    except (FileNotFoundError, SpoolCorrupt):
        return False
    return True


def _is_about_to_be_mended(folder: JobFolder, catalog: Catalog) -> bool:
    """Return whether the job's supervisor has gone and the keeper has not come to the job yet."""
    return not folder.has_supervisor() and not catalog.knows_end(folder.job_id)


def _measure(folder: JobFolder, catalog: Catalog) -> Extent:
    """Measure a log. One that a power cut left and the keeper is about to mend counts as empty until then."""
    try:
        with folder.requiring_files():
            return measure(folder)
    except SpoolCorrupt:
        if not _is_about_to_be_mended(folder, catalog):
            raise
    return Extent()


def _measure_ended(folder: JobFolder, journal: Journal) -> Extent | None:
    """Measure the log of a job that has ended, completed if need be; return None if another process is about to do so.

    Raises:
        SpoolCorrupt: the log is damaged.
    """
    if (extent := measure_complete(folder, journal)) is not None:
        return extent
    if (lock := folder.try_lock()) is None:
        return None
    try:
        complete(folder, journal)
    finally:
        os.close(lock)
    extent = measure_complete(folder, journal)
    if extent is None:
        raise SpoolCorrupt(folder.index, "it does not say whose the log's bytes are")
    return extent
