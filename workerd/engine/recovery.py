"""Ending the log of a job whose supervisor vanished."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from workerd.engine import cgroup
from workerd.engine.errors import SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import FORMAT_VERSION, JobEnd, JobState, JobStatus, Lost, Stream
from workerd.engine.record import RECORD_SIZE, Kind, Record, pack, unpack, unpack_many
from workerd.engine.spool import summarize

_BATCH_BYTES = 4096 * RECORD_SIZE


def recover(folder: JobFolder) -> bool:
    """Bring the folder of a job to a true end, once nobody watches over it any more. Blocks the thread until then.

    A folder whose supervisor has come to the end is left as it is. Otherwise the index is cut at the first record that
    does not check, and the output at the last record that does; what is left of the job is killed; and a job that had
    not been seen to end is ended as lost.

    Returns:
        Whether the job was lost: its supervisor had vanished before the end.
    """
    with folder.wait_lock():
        return _recover(folder)


def _recover(folder: JobFolder) -> bool:
    status = folder.read_status()
    if status is None:
        raise SpoolCorrupt(folder.status, "it is missing")
    if status.state is JobState.ENDED and _has_end(folder):
        return False
    if status.cgroup:
        cgroup.kill(Path(status.cgroup))
        cgroup.wait_empty(Path(status.cgroup))
        cgroup.remove(Path(status.cgroup))
    index = os.open(folder.index, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    output = os.open(folder.output, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        records, size, complete = _survey(index)
        os.ftruncate(index, records * RECORD_SIZE)
        os.lseek(index, 0, os.SEEK_END)
        if records == 0:
            os.write(index, pack(Record(Kind.HEADER, None, FORMAT_VERSION, 0, 0, time.time_ns())))
        if os.fstat(output).st_size > size:
            os.ftruncate(output, size)
        if status.state is not JobState.ENDED:
            folder.write_status(msgspec.structs.replace(status, state=JobState.ENDED, end=_lost(status, index, output)))
        if not complete:
            os.write(index, pack(Record(Kind.END, None, size, 0, 0, time.time_ns())))
    finally:
        os.close(index)
        os.close(output)
    return status.state is not JobState.ENDED


def _has_end(folder: JobFolder) -> bool:
    with open(folder.index, "rb") as index:
        size = os.fstat(index.fileno()).st_size
        index.seek(max(0, size - RECORD_SIZE))
        record = unpack(index.read(RECORD_SIZE)) if size % RECORD_SIZE == 0 else None
    return record is not None and record.kind is Kind.END


def _lost(status: JobStatus, index: int, output: int) -> JobEnd:
    summaries = summarize(output, _all_records(index))
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


def _survey(index: int) -> tuple[int, int, bool]:
    """Count the records that check, and tell the log's size in bytes and whether it has its end."""
    count = size = 0
    for record in _all_records(index):
        count += 1
        if record.kind is Kind.END:
            return count, size, True
        if record.kind is Kind.OUTPUT:
            size = record.end_offset
    return count, size, False


def _all_records(index: int) -> Iterator[Record]:
    position = 0
    while data := os.pread(index, _BATCH_BYTES, position):
        count = 0
        for record in unpack_many(data):
            count += 1
            yield record
        if count * RECORD_SIZE < len(data):
            return
        position += len(data)
