"""A job's journal: what was asked for, each state since, and the end. Appended to, never replaced.

    length u32 | check u32 | payload

The payload is one of the records below as JSON. `check` is the low half of its XXH3-64, seeded with the job's id and
the place of the record in the file, so that nothing of another job or from another place checks. Numbers are
little-endian.

What counts is what checks, up to the first record that does not: a power cut may leave zeros, garbage or nothing where
the last records were. Only the holder of the job's lock, which is held on this file, writes: the daemon that makes it,
then the job's supervisor, then the keeper.
"""

import contextlib
import errno
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workerd.engine import linux
from workerd.engine.errors import CANNOT_GROW, NO_ROOM, EndMissing
from workerd.engine.files import max_file_bytes
from workerd.engine.job import JobEnd, JobSpec, JobState, JobStatus
from workerd.engine.record import checksum, job_seed

_HEAD = struct.Struct("<II")
_ROOM = 12 << 10  # what is set aside at first: some states, the end with a tail, and that it was told
_END_ROOM = 8 << 10  # what all other records leave for the end
_SEEDS = 2**64
_LONGEST_FAULT = 4000
_MOST_FAULTS = 16  # that one writer notes: a job could give cause for any number
_LAST_BYTES = 16 << 10  # of a damaged journal: what follows what was asked for is shorter
TAIL_BYTES = 2048


class LogTail(msgspec.Struct, frozen=True):
    """The last of a log, which is only here on the disk for certain: bytes of its two files, from where they belong."""

    output_offset: int
    output: bytes
    index_offset: int
    index: bytes


class Specified(msgspec.Struct, frozen=True, tag="spec"):
    """What was asked for: the first record. `spool` is the id of the state directory that the job was made in."""

    spool: str
    spec: JobSpec


class Supervised(msgspec.Struct, frozen=True, tag="supervisor"):
    """A supervisor has taken the job on: from now on its program may have been executed.

    Attributes:
        pid: the supervisor's process.
        start_ticks: when that was started, which with the pid and the boot names one process (proc_pid_stat(5)).
        boot: the kernel's id of the boot (proc_sys_kernel(5), random/boot_id).
        cgroup: the path of the job's own cgroup2 directory; empty where there is none.
    """

    pid: int
    start_ticks: int
    boot: str
    cgroup: str


class NotStarted(msgspec.Struct, frozen=True, tag="not-started"):
    """The program was not executed after all."""


class Stated(msgspec.Struct, frozen=True, tag="state"):
    """Where the job stands."""

    status: JobStatus


class Ended(msgspec.Struct, frozen=True, tag="end"):
    """How the job ended."""

    status: JobStatus
    tail: LogTail | None = None


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The end has been told (`workerd.engine.shelf.Shelf.tell_end`)."""


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """Something went wrong inside the supervisor, for people."""

    text: str


Entry = Specified | Supervised | NotStarted | Stated | Ended | Told | Fault

# Made once, where the zygote is started: every supervisor shares them.
_decode = msgspec.json.Decoder(Entry).decode


@dataclass(slots=True)
class Journal:
    """What a job's journal says.

    Attributes:
        spool: the id of the state directory that the job was made in; empty for jobs of formats that had none.
        spec: what was asked for; None when that does not check.
        supervisor: the job's, if one has taken it on.
        status: where the job stands; None when its program was not executed.
        tail: the last of the log, where only the journal has it on the disk for certain.
        is_told: whether the end has been told.
        faults: what went wrong inside the supervisor.
        size: how many bytes check, from the beginning.
        rest: how many bytes follow that do not.
        is_broken: whether records that check come after those: it was damaged, not cut off by a power cut.
    """

    spool: str = ""
    spec: JobSpec | None = None
    supervisor: Supervised | None = None
    status: JobStatus | None = None
    tail: LogTail | None = None
    is_told: bool = False
    faults: tuple[str, ...] = ()
    size: int = 0
    rest: int = 0
    is_broken: bool = False

    @property
    def ended(self) -> bool:
        """Whether the end has been written."""
        return self.status is not None and self.status.state is JobState.ENDED

    def spec_and_end(self, path: Path) -> tuple[JobSpec, JobEnd]:
        """Return what was asked for and how the job ended, once its log has its end.

        Args:
            path: of the job's folder.

        Raises:
            EndMissing: the journal has no end.
        """
        if self.spec is None or self.status is None or self.status.end is None:
            raise EndMissing(path)
        return self.spec, self.status.end

    def add(self, entry: Entry) -> bool:
        """Take one more record; return False if it cannot come at this place."""
        match entry:
            case _ if (self.spec is None) is not isinstance(entry, Specified):
                return False
            case Specified():
                self.spool, self.spec = entry.spool, entry.spec
            case Fault():
                self.faults += (entry.text,)
            case Told():
                self.is_told = True
            case _ if self.ended:
                return False
            case Supervised():
                self.supervisor, self.status = entry, JobStatus(state=JobState.STARTING)
            case NotStarted():
                self.supervisor = self.status = None
            case Stated():
                self.status = entry.status
            case Ended():
                self.status, self.tail = entry.status, entry.tail
        return True


def encode(entry: Entry, job_id: str, offset: int) -> bytes:
    """Encode a record for one place of a job's journal.

    Args:
        offset: of the record in the file, in bytes.
    """
    return seal(msgspec.json.encode(entry), job_id, offset)


def seal(payload: bytes, job_id: str, place: int) -> bytes:
    """Put length and checksum before some bytes that belong to one place of one job."""
    return _HEAD.pack(len(payload), checksum(payload, (job_seed(job_id) + place) % _SEEDS)) + payload


def unseal(data: bytes, job_id: str, place: int) -> bytes | None:
    """Return the bytes that `seal` was given; None if they do not check."""
    payload = data[_HEAD.size :]
    return payload if data == seal(payload, job_id, place) else None


def parse(data: bytes, job_id: str) -> Journal:
    """Read a journal, up to the first record that does not check.

    Args:
        data: the whole file.
    """
    journal, view, seed = Journal(), memoryview(data), job_seed(job_id)
    while len(data) - journal.size >= _HEAD.size:
        length, check = _HEAD.unpack_from(data, journal.size)
        start = journal.size + _HEAD.size
        payload = view[start : start + length]
        if len(payload) < length or checksum(payload, (seed + journal.size) % _SEEDS) != check:
            break
        try:
            entry = _decode(payload)
        except msgspec.MsgspecError:
            break
        if not journal.add(entry):
            break
        journal.size = start + length
    journal.rest = len(data) - journal.size if len(data.rstrip(b"\0")) > journal.size else 0
    return journal


def goes_on(data: bytes, job_id: str, size: int) -> bool:
    """Return whether any record checks after those that do: a journal was damaged then, and not cut off.

    Args:
        data: the whole file.
        size: how many bytes check, from the beginning.
    """
    seed = job_seed(job_id)
    for offset in range(max(size + 1, len(data) - _LAST_BYTES), len(data) - _HEAD.size):
        length, check = _HEAD.unpack_from(data, offset)
        payload = memoryview(data)[offset + _HEAD.size : offset + _HEAD.size + length]
        if 0 < length == len(payload) and checksum(payload, (seed + offset) % _SEEDS) == check:
            return True
    return False


def is_cut_off(data: bytes) -> bool:
    """Return whether a journal ends, or has only zeros, before the end of its first record.

    Args:
        data: the whole file.
    """
    whole = data.rstrip(b"\0")
    return len(whole) < _HEAD.size or len(whole) < _HEAD.size + _HEAD.unpack_from(whole)[0]


@contextlib.contextmanager
def _if_possible() -> Iterator[None]:
    """Do without room that is set aside where the file system cannot do that: appends say then that there is none."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise


class JournalWriter:
    """Appends to a job's journal, for the holder of the job's lock.

    Args:
        descriptor: of the file, open for reading and writing; it stays the caller's.
        job_id: whose journal it is.
        size: how many bytes of it check. What follows is overwritten.
    """

    def __init__(self, descriptor: int, job_id: str, size: int) -> None:
        self._descriptor = descriptor
        self._job_id = job_id
        self._size = size
        self._faults = 0
        self._room = 0  # where what is set aside for certain ends
        self._most_bytes = max_file_bytes() or sys.maxsize

    def set_room_aside(self) -> None:
        """Set room aside on the disk, if there is any, so that a full disk does not keep the end from being written.

        Raises:
            OSError: EFBIG where the journal may not become so long, since fallocate(2) does not look at RLIMIT_FSIZE.
        """
        if self._size + _ROOM > self._most_bytes:
            problem = f"a journal of {self._size + _ROOM} bytes is longer than a file may be here (RLIMIT_FSIZE)"
            raise OSError(errno.EFBIG, problem)
        try:
            with _if_possible():
                linux.set_room_aside(self._descriptor, self._size, _ROOM)
                self._room = self._size + _ROOM
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise

    def append(self, entry: Entry) -> None:
        """Append a record.

        Raises:
            OSError: nothing was appended: the same call may be made again. Where there is no room on the disk, what is
                set aside is left to the end.
        """
        data = encode(entry, self._job_id, self._size)
        if not isinstance(entry, Ended | Told) and self._room < self._size + len(data) + _END_ROOM:
            was = self._room
            self.set_room_aside()
            if 0 < self._room == was:
                raise OSError(errno.ENOSPC, "the rest of the room is set aside for the job's end")
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                written += os.pwrite(self._descriptor, view[written:], self._size + written)
        except OSError:
            if written and not self._room:  # or the half of a record would look like damage
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def report_fault(self, text: str) -> None:
        """Note that something went wrong inside the supervisor, for people; a full disk keeps it from being noted.

        So do many that were noted before.
        """
        if self._faults == _MOST_FAULTS:
            return
        self._faults += 1
        try:
            self.append(Fault(text[-_LONGEST_FAULT:]))
        except OSError as error:
            if error.errno not in CANNOT_GROW:
                raise

    def keep_room_to_tell(self) -> None:
        """Release what was set aside and not used, but for what it takes to note that the end has been told.

        Raises:
            OSError: there is no room for that.
        """
        os.ftruncate(self._descriptor, self._size)
        with _if_possible():
            linux.set_room_aside(self._descriptor, self._size, len(encode(Told(), self._job_id, self._size)))

    def sync(self) -> None:
        """Wait until all that was appended is on the disk (fdatasync(2))."""
        os.fdatasync(self._descriptor)
