"""A copy of the trail's head outside of its folder, which shows that the trail was removed or cut.

Only a line that was forced to the disk is remembered: otherwise a power cut would look like removed lines. So the copy
may be some seconds behind the trail, which must have this line, or have released it.
"""

import os
from pathlib import Path

import structlog

from audit.chain import Head, format_head, parse_head
from audit.files import HEAD, list_files
from workerd.engine.errors import EngineError
from workerd.engine.files import read_whole, replacing, sync_names

log = structlog.get_logger()


class RememberedHead:
    """A head in a file, which is written atomically.

    Args:
        path: the file, outside of the trail's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Head | None:
        """Return the head; None if there is none that can be read, which is logged unless there is no file."""
        try:
            head = parse_head(read_whole(self._path))
        except FileNotFoundError:
            return None
        except (OSError, EngineError) as error:
            problem = str(error)
        else:
            if head is not None:
                return head
            problem = "it was changed"
        log.error("the remembered head of the audit trail cannot be used", file=str(self._path), problem=problem)
        return None

    def keep(self, head: Head) -> None:
        """Remember a head whose line is on the disk.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(self._path) as file:
            file.write(format_head(head))


def synced_head(directory: Path, since: Head | None) -> Head | None:
    """Return the head of a trail, after waiting until its line is on the disk; None if there is none.

    Args:
        directory: the trail's folder. Other processes may append at the same time.
        since: a head that was on the disk before; None for any.

    Raises:
        OSError: the disk does not take it.
    """
    try:
        head = parse_head((directory / HEAD).read_bytes())
        if head is None or head == since:
            return head
        files = list_files(directory)
    except FileNotFoundError:
        return None
    # The head names a line of the last file, or of one before it: another may have been begun since.
    synced = 0 if since is None else since.seq
    ends = [following.first_seq - 1 for following in files[1:]]
    for file, end in zip(files, [*ends, None], strict=True):
        if end is None or end > synced:
            _sync(directory / file.name)
    sync_names(directory)
    return head


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # it was released just now
        return
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
