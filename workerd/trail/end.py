"""Where the lines of an audit trail end, as whoever goes on with it finds them."""

import os
from dataclasses import dataclass

import structlog

from audit.chain import GENESIS, Head, LineInvalid, Link, read_line
from audit.files import list_files, read_end
from workerd.engine.files import private

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TrailEnd:
    """The last file of a trail, open for appending, and its last line.

    Attributes:
        descriptor: of the file, to be closed by who asked; None when there is no line.
        size: of the file, in bytes.
        older_bytes: of all files before it.
        last: the last line; None when there is none that checks.
    """

    descriptor: int | None
    name: str
    first_seq: int
    size: int
    older_bytes: int
    last: Link | None

    @property
    def head(self) -> Head | None:
        """What the next line would follow; None when that cannot be told."""
        if self.descriptor is None:
            return GENESIS
        return None if self.last is None else self.last.head

    @property
    def before(self) -> Head | None:
        """What the last line follows; None when there is no such line."""
        return None if self.last is None else Head(self.last.seq - 1, self.last.prev)


def open_end(folder: int) -> TrailEnd:
    """Open the last file that has a line. What was not finished behind that line is removed.

    Args:
        folder: a descriptor of the trail's folder, which the caller has locked.

    Raises:
        OSError: that could not be done.
    """
    files = list_files(folder)
    older_bytes = sum(os.stat(file.name, dir_fd=folder).st_size for file in files)
    for file in reversed(files):
        descriptor = private(file.name, os.O_RDWR | os.O_APPEND, folder)
        try:
            size = os.fstat(descriptor).st_size
            older_bytes -= size
            line, unfinished_bytes = read_end(descriptor, size)
            if unfinished_bytes:
                log.warning("a line of the audit trail that was not finished is removed", file=file.name)
                size -= unfinished_bytes
                os.ftruncate(descriptor, size)
            if size:
                return TrailEnd(descriptor, file.name, file.first_seq, size, older_bytes, _check(line))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        os.unlink(file.name, dir_fd=folder)  # it was just being begun
    return TrailEnd(None, "", 0, 0, 0, None)


def _check(line: bytes) -> Link | None:
    try:
        return read_line(line)
    except LineInvalid:
        return None
