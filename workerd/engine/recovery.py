"""Bringing a job to a true end when no process watches over it any more.

What is on the disk is believed as far as it checks. A job whose journal has its end keeps it, and its log is completed:
the end record of the index is written last and not waited for, and the journal may have the last bytes of the log. Any
other job was lost: its supervisor vanished. Where the log has its end and the journal has not, the end was told and is
damaged: nothing is made up in its place.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import xxhash

from workerd.engine.errors import EndMissing, FormatTooNew, JournalDamaged, SpoolCorrupt
from workerd.engine.files import open_regular, sync_names
from workerd.engine.folder import JobFolder
from workerd.engine.index import IndexFile
from workerd.engine.job import JobEnd, JobState, JobStatus, Lost, Stream, StreamSummary
from workerd.engine.journal import Ended, Journal, JournalWriter, LogTail
from workerd.engine.old_format import write_old_status
from workerd.engine.reader import Extent
from workerd.engine.record import LOW_HALF, RECORD_SIZE, Kind, Record

_PIECE = 1 << 20
VANISHED = "the job's supervisor vanished, and the job with it"
COPIED = "this is a copy of the state directory that the job ran in: what is left of the job belongs to that"


def check_lost(folder: JobFolder) -> Journal | None:
    """Check a job that no supervisor watches over; return its journal if it was lost, None if it has ended.

    Raises:
        FormatTooNew: it was written by a newer workerd.
        SpoolCorrupt: it is damaged beyond what `recover` can mend.
    """
    journal = folder.read()
    if journal.ended:
        return None
    with contextlib.suppress(FileNotFoundError), folder.open_index() as index:
        _check_lost(folder, journal, index)
    return journal


def _check_lost(folder: JobFolder, journal: Journal, index: IndexFile) -> int:
    """Check that the end of a job was not told and then damaged; return the number of the first record that is kept."""
    if index.end() is not None:
        raise EndMissing(folder.path)
    first = _first_kept(index)
    if journal.is_broken:
        raise JournalDamaged(folder.journal, journal.size)
    return first


def recover(folder: JobFolder, lock: int, why: str = VANISHED) -> bool:
    """Bring the folder of a job to a true end. Blocks the thread until then.

    The caller holds the job's lock, and has ended the job's processes (`workerd.engine.remains`).

    Args:
        lock: as `JobFolder.try_lock` returns it.
        why: what a lost job is lost by, for people.

    Returns:
        Whether the job was lost: its supervisor had vanished before the end.

    Raises:
        FormatTooNew: it was written by a newer workerd; nothing of it is touched.
        SpoolCorrupt: it is damaged beyond that; nothing of it is touched.
    """
    journal = folder.read()
    if journal.ended:
        complete(folder, journal)
        return False
    flags = os.O_RDWR | os.O_CREAT
    output = open_regular(folder.output, flags)
    try:
        with folder.open_index(flags) as index:
            survey = _survey(index, output, _check_lost(folder, journal, index))
            _cut(index, output, survey)
            end = _lost(journal.status or JobStatus(state=JobState.STARTING), survey, why)
            if folder.is_old:
                write_old_status(folder.path, end)
            else:
                writer = JournalWriter(lock, folder.job_id, journal.size)
                writer.append(Ended(end))
                writer.keep_room_to_tell()
                writer.sync()
                sync_names(folder.path)
            _write_end(index, survey.records, survey.size)
    finally:
        os.close(output)
    return True


def complete(folder: JobFolder, journal: Journal) -> None:
    """Complete the log of a job that has ended, where a power cut took the last of it and the journal has that.

    The caller holds the job's lock, or knows that it is free.

    Raises:
        SpoolCorrupt: the log is damaged.
    """
    if is_complete(folder, journal):
        return
    if journal.tail is not None:
        _restore(folder, journal.tail)
    size = _log_size(journal)
    with folder.requiring_files(), folder.open_index(os.O_RDWR) as index:
        last = index.last_output()
        if (there := os.stat(folder.output).st_size) < size:
            raise SpoolCorrupt(folder.output, f"it has {there} of the {size} bytes that the job printed")
        if (there := 0 if last is None else last.end_offset) != size:
            raise SpoolCorrupt(folder.index, f"it knows {there} of the {size} bytes that the job printed")
        records = next(n for n in range(index.count(), 0, -1) if n == 1 or _is_output(index.read(n - 1)))
        os.ftruncate(index.descriptor, records * RECORD_SIZE)
        _write_end(index, records, size)


def is_complete(folder: JobFolder, journal: Journal) -> bool:
    """Return whether the log of a job that has ended says so, is as long as the job's end says, and has its tail."""
    return measure_complete(folder, journal) is not None


def measure_complete(folder: JobFolder, journal: Journal) -> Extent | None:
    """Return how much there is of the log of a job that has ended; None if the log is not complete.

    Raises:
        FormatTooNew: the log was written by a newer workerd.
    """
    end = _end_of(journal)
    try:
        with folder.open_index() as index:
            record, kept = index.end(), index.kept_from()[1]
        if record is None or not record.offset == _log_size(journal) <= os.stat(folder.output).st_size:
            return None
        if journal.tail is not None and not all(_has(*part) for part in _parts(folder, journal.tail)):
            return None
    except FormatTooNew:
        raise
    except (FileNotFoundError, SpoolCorrupt):
        return None
    return Extent(end.stdout.size_bytes, end.stderr.size_bytes, kept, ended=True)


def _end_of(journal: Journal) -> JobEnd:
    if journal.status is None or journal.status.end is None:
        raise AssertionError("a job that has not ended has no complete log")
    return journal.status.end


def _log_size(journal: Journal) -> int:
    end = _end_of(journal)
    return end.stdout.size_bytes + end.stderr.size_bytes


def has_end(folder: JobFolder) -> bool:
    """Return whether the log has its end."""
    try:
        with folder.open_index() as index:
            return index.end() is not None
    except FileNotFoundError:
        return False


def has_output(folder: JobFolder) -> bool:
    """Return whether the log has any output."""
    try:
        return os.stat(folder.output).st_size > 0
    except FileNotFoundError:
        return False


def _restore(folder: JobFolder, tail: LogTail) -> None:
    """Write the last of a log where it belongs."""
    for path, offset, data in _parts(folder, tail):
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            os.ftruncate(descriptor, offset + len(data))
            os.pwrite(descriptor, data, offset)
        finally:
            os.close(descriptor)


def _parts(folder: JobFolder, tail: LogTail) -> tuple[tuple[Path, int, bytes], ...]:
    return (folder.output, tail.output_offset, tail.output), (folder.index, tail.index_offset, tail.index)


def _has(path: Path, offset: int, data: bytes) -> bool:
    """Return whether a file has some bytes where they belong."""
    descriptor = open_regular(path)
    try:
        return os.pread(descriptor, len(data), offset) == data
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Survey:
    """What of a log checks: how many records, how many bytes, and what each stream amounts to."""

    records: int
    size: int = 0
    sizes: dict[Stream, int] = field(default_factory=lambda: dict.fromkeys(Stream, 0))
    digests: dict[Stream, xxhash.xxh3_128] | None = field(
        default_factory=lambda: {stream: xxhash.xxh3_128() for stream in Stream}
    )

    def summary(self, stream: Stream) -> StreamSummary:
        """Return what one stream amounts to; without a digest when its beginning was released."""
        return StreamSummary(self.sizes[stream], "" if self.digests is None else self.digests[stream].hexdigest())


def _first_kept(index: IndexFile) -> int:
    """Return the number of the first record that was not released; zero when nothing of the index reached the disk."""
    try:
        return index.first_kept()
    except FormatTooNew:
        raise
    except SpoolCorrupt:
        whole = range(1, index.count())
        if whole and index.read(1) is not None:
            return 1  # and the header is written again
        is_blank = not any(index.read_batch(0, 1))
        if not is_blank and any(index.read(number) is not None for number in whole):
            raise
        return 0


def _survey(index: IndexFile, output: int, first: int) -> _Survey:
    """Look through the records from the first that is kept, as far as they and their bytes check.

    Args:
        first: its number; zero when there is not even a header.
    """
    survey = _Survey(first)
    if first > 1:
        survey.digests = None
        kept = index.read(first)
        if kept is not None and kept.stream is not None:
            survey.size = kept.offset
            survey.sizes = {stream: kept.stream_size(stream) for stream in Stream}
            survey.sizes[kept.stream] -= kept.length
    for record in index.records(first) if first else ():
        if record.kind is not Kind.OUTPUT or record.stream is None:
            break
        digest = None if survey.digests is None else survey.digests[record.stream].copy()
        if not _checks(record, output, digest):
            break
        if survey.digests is not None and digest is not None:
            survey.digests[record.stream] = digest
        survey.records += 1
        survey.size = record.end_offset
        survey.sizes = {stream: record.stream_size(stream) for stream in Stream}
    return survey


def _checks(record: Record, output: int, digest: xxhash.xxh3_128 | None) -> bool:
    """Return whether a record's bytes are there and check, and add them to a digest."""
    content = xxhash.xxh3_64()
    for piece in _pieces(record, output):
        content.update(piece)
        if digest is not None:
            digest.update(piece)
        if not piece:
            return False
    return record.data is None or record.data == content.intdigest() & LOW_HALF


def _pieces(record: Record, output: int) -> Iterator[bytes]:
    """Read a record's bytes; an empty piece stands for what is not there."""
    offset = record.offset
    while offset < record.end_offset:
        piece = os.pread(output, min(_PIECE, record.end_offset - offset), offset)
        yield piece
        if not piece:
            return
        offset += len(piece)


def _cut(index: IndexFile, output: int, survey: _Survey) -> None:
    """Cut a log after what checks, and force it to the disk."""
    os.ftruncate(index.descriptor, survey.records * RECORD_SIZE)
    if index.read(0) is None:
        header = Record(Kind.HEADER, None, index.codec.versions.stop - 1, index.codec.tie, 0, time.time_ns())
        os.pwrite(index.descriptor, index.codec.pack(0, header), 0)
        survey.records = max(survey.records, 1)
    os.ftruncate(output, survey.size)
    os.fdatasync(output)
    os.fdatasync(index.descriptor)


def _write_end(index: IndexFile, records: int, size: int) -> None:
    end = index.codec.pack(records, Record(Kind.END, None, size, 0, 0, time.time_ns()))
    os.pwrite(index.descriptor, end, records * RECORD_SIZE)


def _is_output(record: Record | None) -> bool:
    return record is not None and record.kind is Kind.OUTPUT


def _lost(status: JobStatus, survey: _Survey, why: str) -> JobStatus:
    end = JobEnd(
        cause=Lost(why),
        started_ns=status.started_ns,
        ended_ns=time.time_ns(),
        user_cpu_seconds=0.0,
        system_cpu_seconds=0.0,
        peak_memory_bytes=0,
        stdout=survey.summary(Stream.STDOUT),
        stderr=survey.summary(Stream.STDERR),
    )
    return msgspec.structs.replace(status, state=JobState.ENDED, waits_for_room=False, end=end)
