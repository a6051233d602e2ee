"""Whether a trail continues a head that was kept elsewhere."""

import os
from collections.abc import Iterator
from pathlib import Path

from audit.chain import GENESIS, RELEASED, Head, LineInvalid, is_numbered, read_line, read_released
from audit.files import TrailFile, list_files

_RELEASED = b'"event":"%s"' % RELEASED.encode()


def continues(folder: Path | int, head: Head) -> bool:
    """Return whether a trail has the line of a head, or has a `released` line for it.

    Args:
        folder: a path, or a descriptor. No process may append at the same time.
        head: a head that was kept elsewhere.

    Raises:
        OSError: a file cannot be read.
    """
    if head == GENESIS:
        return True
    files = list_files(folder)
    earlier = [file for file in files if file.first_seq <= head.seq]
    if not earlier:
        return _was_released(folder, files)
    line = next((line for line in _lines(folder, earlier[-1]) if is_numbered(line, head.seq)), b"")
    try:
        return read_line(line).head == head
    except LineInvalid:
        return False


def _was_released(folder: Path | int, files: list[TrailFile]) -> bool:
    """Return whether a trail has a `released` line for the lines before its first one."""
    try:
        first = read_line(next((line for file in files[:1] for line in _lines(folder, file)), b""))
        before = Head(first.seq - 1, first.prev)
        released = (line for file in files for line in _lines(folder, file) if _RELEASED in line)
        return any(read_line(line).event == RELEASED and read_released(line) == before for line in released)
    except LineInvalid:
        return False


def _lines(folder: Path | int, file: TrailFile) -> Iterator[bytes]:
    directory = folder if isinstance(folder, int) else os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(file.name, flags, dir_fd=directory), "rb") as opened:
            yield from opened
    finally:
        if directory != folder:
            os.close(directory)
