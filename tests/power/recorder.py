"""The recorder: a disk image of which every write and flush is recorded, and the records."""

import bisect
import contextlib
import enum
import mmap
import shlex
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.power.disk import DiskFailed

_SOURCE = Path(__file__).with_name("recorder.c")
_HEADER = struct.Struct("=4Q")
_STOP_SECONDS = 30


class Kind(enum.IntEnum):
    """What was done to the disk; the numbers are those of recorder.c."""

    WRITE = 1
    FLUSH = 2


@dataclass(frozen=True, slots=True)
class Record:
    """One write or flush.

    Attributes:
        offset: where on the disk a write went, in bytes.
        time_ns: when it took effect, nanoseconds since the epoch.
        data_at: where its bytes are in the record log.
        end: where the record ends in the record log.
    """

    kind: Kind
    offset: int
    length: int
    time_ns: int
    data_at: int

    @property
    def end(self) -> int:
        return self.data_at + self.length


class Recording:
    """All records of a run, in the order in which they took effect."""

    def __init__(self, log: Path) -> None:
        with log.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.records = tuple(self._read())

    def close(self) -> None:
        self._data.close()

    def data(self, record: Record) -> bytes:
        """Return the bytes of a write."""
        return self._data[record.data_at : record.end]

    def count_before(self, position: int) -> int:
        """Return how many records lie within the first bytes of the record log."""
        return bisect.bisect_right(self.records, position, key=lambda record: record.end)

    def _read(self) -> Iterator[Record]:
        at = 0
        while at < len(self._data):
            kind, offset, length, time_ns = _HEADER.unpack_from(self._data, at)
            record = Record(Kind(kind), offset, length if kind == Kind.WRITE else 0, time_ns, at + _HEADER.size)
            yield record
            at = record.end


def compile_recorder(folder: Path) -> Path:
    """Compile recorder.c into a folder and return the program."""
    program = folder / "recorder"
    asked = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    command = ["gcc", "-O2", "-Wall", "-o", str(program), str(_SOURCE), *shlex.split(asked.stdout)]
    subprocess.run(command, check=True, timeout=120)
    return program


@contextlib.contextmanager
def recorded_image(recorder: Path, image: Path, log: Path, mountpoint: Path) -> Iterator[Path]:
    """Record what is written to an image.

    Args:
        recorder: the program.
        log: where the records go.
        mountpoint: an empty folder.

    Yields:
        The file to write to.

    Raises:
        DiskFailed: it cannot be mounted here.
    """
    # In a session of its own: Ctrl-C must not take the disk away from under a mounted file system.
    command = [recorder, image, log, mountpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        with process.stdout as said:
            if said.readline() != b"ready\n":
                raise DiskFailed(("recorder", str(image)), "it could not be mounted")
        yield mountpoint / "img"
    finally:
        process.terminate()
        try:
            process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if mountpoint.is_mount():
            subprocess.run(["umount", "--lazy", mountpoint], check=True)
