"""Files of a state directory: private, read as a whole, replaced as a whole, forced to the disk."""

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from system.ownership import account_name
from workerd.engine.errors import SpoolCorrupt

DAMAGE = frozenset(
    {errno.EISDIR, errno.ELOOP, errno.EIO, errno.ENXIO, errno.EACCES, errno.EPERM}  # EPERM: it is immutable
    | {errno.EUCLEAN, errno.EBADMSG}  # what ext4 and XFS say of damage of their own
)
"""The numbers of system errors that say that a file cannot be read, and will not be (errno(3))."""


def max_file_bytes() -> int | None:
    """Return how long a file may become that this process writes (getrlimit(2), RLIMIT_FSIZE); None for any length."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


def private(path: str, flags: int, folder: int | None = None) -> int:
    """Open a regular file of this account or root, for `open`. One that is made is closed to other accounts.

    Another account may have put a file there when it could still write to the folder. It could change what is written
    to that file later, and hold its lock.

    Args:
        path: of the file, which must not be a link.
        flags: for open(2). A file is not emptied before its owner is known.
        folder: a descriptor of the folder that a relative path is in.

    Raises:
        PermissionError: it is not regular, or another account's.
        OSError: it cannot be opened.
    """
    opened = flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, opened, 0o600, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(errno.EPERM, "it is not a regular file: remove it", path)
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, f"it belongs to {account_name(found.st_uid)}: remove it", path)
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file that nobody else may read.

    Returns:
        A descriptor, which is close-on-exec.

    Raises:
        FileNotFoundError: there is no such file.
        SpoolCorrupt: what is there is no regular file.
    """
    try:
        # O_NONBLOCK: a FIFO must not be waited for.
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise
        raise SpoolCorrupt(path, str(error.strerror)) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise SpoolCorrupt(path, "it is no regular file")
    if found.st_uid not in (0, os.geteuid()):
        os.close(descriptor)
        raise SpoolCorrupt(path, f"it belongs to another account (uid {found.st_uid})")
    return descriptor


def read_whole(path: Path, most: int = 0) -> bytes:
    """Return the content of a file.

    Args:
        most: the bytes of the longest that there may be; zero for any number.

    Raises:
        FileNotFoundError: there is no such file.
        SpoolCorrupt: it is no regular file, cannot be read off the disk, or is too long.
    """
    with open(open_regular(path), "rb") as file:
        if 0 < most < (size := os.fstat(file.fileno()).st_size):
            raise SpoolCorrupt(path, f"{size} bytes are more than it can have")
        try:
            return file.read()
        except OSError as error:
            if error.errno not in DAMAGE:
                raise
            raise SpoolCorrupt(path, str(error.strerror)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[FileIO]:
    """Replace a file as a whole: a reader, and a power cut, leave the old or the new one.

    Yields:
        The new file, to be written. It takes its place when the context ends, and is on the disk then.
    """
    new = path.with_name(path.name + ".new")
    with open(new, "wb", buffering=0, opener=private) as file:
        yield file
        os.fsync(file.fileno())
    os.rename(new, path)
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder, and its own in the one above, are on the disk."""
    sync_path(folder)
    sync_path(folder / "..")
