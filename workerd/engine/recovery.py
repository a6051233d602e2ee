"""Ending the log of a job whose supervisor vanished."""

import os
import time
from pathlib import Path

import msgspec

from workerd.engine import cgroup, tree
from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.index import count_records, first_kept, read_record, read_records
from workerd.engine.job import FORMAT_VERSION, JobEnd, JobState, JobStatus, Lost, Stream
from workerd.engine.record import RECORD_SIZE, Kind, Record, pack
from workerd.engine.spool import summarize


def recover(folder: JobFolder) -> bool:
    """Bring the folder of a job to a true end, once nobody watches over it any more. Blocks the thread until then.

    A folder whose supervisor has come to the end is left as it is. Otherwise the index is cut at the first record that
    does not check or whose bytes are not there, and the output at the last record that is left; what is left of the job
    is killed; and a job that had not been seen to end is ended as lost.

    Returns:
        Whether the job was lost: its supervisor had vanished before the end.

    Raises:
        FormatTooNew: it was written by a newer workerd; nothing of it is touched.
        SpoolCorrupt: it is damaged beyond that; nothing of it is touched.
    """
    with folder.wait_lock():
        return _recover(folder)


def has_end(folder: JobFolder) -> bool:
    """Tell whether the last record of a log says that it is complete."""
    try:
        index = os.open(folder.index, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        record = read_record(index, count_records(index) - 1)
    finally:
        os.close(index)
    return record is not None and record.kind is Kind.END


def _recover(folder: JobFolder) -> bool:
    folder.read_spec()
    status = folder.read_status()
    if status is None:
        raise SpoolCorrupt(folder.status, "it is missing")
    if status.state is JobState.ENDED and has_end(folder):
        return False
    index = os.open(folder.index, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    output = os.open(folder.output, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        first = first_kept(index, folder.index) if count_records(index) else 0
        _kill_what_is_left(status, folder.path.name)
        records, size, complete = _survey(index, first, os.fstat(output).st_size)
        os.ftruncate(index, records * RECORD_SIZE)
        if records == 0:
            header = pack(Record(Kind.HEADER, None, FORMAT_VERSION, 0, 0, time.time_ns()))
            records += os.pwrite(index, header, 0) // RECORD_SIZE
        if os.fstat(output).st_size > size:
            os.ftruncate(output, size)
        if status.state is not JobState.ENDED:
            end = _lost(status, index, output, max(1, first))
            folder.write_status(msgspec.structs.replace(status, state=JobState.ENDED, end=end))
        if not complete:
            os.pwrite(index, pack(Record(Kind.END, None, size, 0, 0, time.time_ns())), records * RECORD_SIZE)
    finally:
        os.close(index)
        os.close(output)
    return status.state is not JobState.ENDED


def _kill_what_is_left(status: JobStatus, job_id: str) -> None:
    if status.cgroup:
        cgroup.kill(Path(status.cgroup))
        cgroup.wait_empty(Path(status.cgroup))
        cgroup.remove(Path(status.cgroup))
    else:
        tree.kill_marked(f"WORKERD_JOB_ID={job_id}")


def _lost(status: JobStatus, index: int, output: int, first: int) -> JobEnd:
    summaries = summarize(output, read_records(index, first))
    return JobEnd(
        cause=Lost("the job's supervisor vanished, and the job with it"),
        started_ns=status.started_ns,
        ended_ns=time.time_ns(),
        user_cpu_seconds=0.0,
        system_cpu_seconds=0.0,
        peak_memory_bytes=0,
        stdout=summaries[Stream.STDOUT],
        stderr=summaries[Stream.STDERR],
    )


def _survey(index: int, first: int, output_size: int) -> tuple[int, int, bool]:
    """Look through the records from the first that is kept, as far as they check and their bytes are there.

    Args:
        first: its number; zero when there is not even a header.

    Returns:
        How many records there are up to that point, the log's size in bytes, and whether it has its end.
    """
    count, size = first, 0
    for record in read_records(index, first) if first else ():
        if record.kind is Kind.OUTPUT and record.end_offset > output_size:
            break
        count += 1
        if record.kind is Kind.END:
            return count, size, True
        size = record.end_offset
    return count, size, False
