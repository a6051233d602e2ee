"""What belongs to a state directory: its id, and the marks of its jobs' processes.

A copy of a state directory must not end the jobs of the original. So a state directory has a random id, which belongs
to one file on one file system: in a copy the file is another, and gets an id of its own. Processes of a job carry a
mark made of both ids, as the name of their cgroup and in their environment.
"""

import contextlib
import os
import uuid
from pathlib import Path

import msgspec
import xxhash

from workerd.engine.errors import FormatTooNew, SpoolCorrupt
from workerd.engine.files import read_whole, replacing
from workerd.engine.job import FORMAT_VERSION, User

MARK_VARIABLE = "WORKERD_JOB_MARK"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Version(msgspec.Struct):
    """The one field that every format has, in this file and in the `spec` of a job's folder."""

    format: int


class _Label(msgspec.Struct, frozen=True):
    """The content of `spec` in a job's folder."""

    format: int
    owner: User


class _Identity(msgspec.Struct, frozen=True):
    """The content of the file."""

    format: int
    id: str
    device: int
    inode: int


def establish(path: Path) -> str:
    """Return the id of a state directory; make one for a new directory, and for a copy.

    Only the holder of the state directory may call this.

    Args:
        path: of the file that holds it.

    Raises:
        FormatTooNew: a newer workerd made it.
        OSError: it cannot be read or written.
    """
    try:
        return read(path)
    except (FileNotFoundError, SpoolCorrupt) as error:
        if isinstance(error, FormatTooNew):
            raise
    if path.is_dir():
        path.rmdir()
    made = uuid.uuid4().hex
    with replacing(path) as file:
        stat = os.fstat(file.fileno())
        file.write(msgspec.json.encode(_Identity(FORMAT_VERSION, made, stat.st_dev, stat.st_ino)))
    return made


def read(path: Path) -> str:
    """Return the id of a state directory.

    Raises:
        FileNotFoundError: it has none yet.
        SpoolCorrupt: it is damaged, or that of another directory.
        FormatTooNew: a newer workerd made it.
    """
    data = read_whole(path)
    try:
        version = msgspec.json.decode(data, type=Version).format
        if version > FORMAT_VERSION:
            raise FormatTooNew(path, version)
        identity = msgspec.json.decode(data, type=_Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SpoolCorrupt(path, str(error)) from error
    stat = os.stat(path)
    if (identity.device, identity.inode) != (stat.st_dev, stat.st_ino):
        raise SpoolCorrupt(path, "it was copied from another state directory")
    return identity.id


def label(directory: Path, owner: User) -> Path:
    """Return the file that `spec` of every job of one owner is a link to, which may not be there if it cannot be made.

    Versions before 3 read there that a job's format is newer, and to whom they may say so.

    Args:
        directory: holds one for each owner; made for the first.
    """
    path = directory / xxhash.xxh3_128_hexdigest(owner.id.encode())
    if not path.is_file():
        with contextlib.suppress(OSError):  # the job gets a file of its own then, or is refused for the same reason
            directory.mkdir(mode=0o700, exist_ok=True)
            new = directory / uuid.uuid4().hex
            with replacing(new) as file:
                file.write(label_content(owner))
            new.rename(path)
    return path


def label_content(owner: User) -> bytes:
    """Return what `spec` of an owner's jobs holds."""
    return msgspec.json.encode(_Label(FORMAT_VERSION, owner))


def job_mark(spool: str, job_id: str) -> str:
    """Return the mark of one job's processes. It does not give the job's id away."""
    return xxhash.xxh3_128_hexdigest(f"{spool}/{job_id}".encode())


def boot_id() -> str:
    """Return the kernel's id of this boot (proc_sys_kernel(5))."""
    return _BOOT_ID.read_text().strip()
