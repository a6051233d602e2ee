"""The writer of the audit trail, of which there may be several at once, in several processes.

A line is acknowledged when it is in its file and the file `head` names it. Each is appended under a lock on the trail's
folder (flock(2)), which the kernel takes back when its holder dies. Whoever has the lock and finds that head and lines
are not as it left them looks where the trail ends: a line that somebody did not finish to write is removed, a head that
is a line behind is brought forward, and if anything else is found, a line with the event `resumed` says so.

Room for more lines is set aside behind the end of the last file (fallocate(2), FALLOC_FL_KEEP_SIZE), so that the trail
goes on for a while on a disk that others have filled.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from audit.chain import (
    GENESIS,
    MAX_LINE_BYTES,
    RELEASED,
    RESUMED,
    Head,
    LineInvalid,
    format_head,
    make_line,
    parse_head,
    read_line,
)
from audit.continuation import continues
from audit.files import HEAD, file_name, list_files, read_end
from system.file_lock import LockHeld, lock_within
from workerd.engine import linux
from workerd.engine.errors import NO_ROOM
from workerd.engine.files import max_file_bytes, private
from workerd.errors import AuditFailed
from workerd.trail.end import open_end
from workerd.trail.remembered import RememberedHead, synced_head

log = structlog.get_logger()
_FILE_BYTES = 64 << 20
_ROOM_BYTES = 4 << 20
_FILES = 4  # of a small trail: most of it is there after the oldest was removed
_RESERVE = 4  # which part of the room that is set aside is for what is urgent
_DENIED_BYTES = 2048  # 1 KiB of what was asked, and whose it was
_LOOK_SECONDS = 1.0  # how soon to look again for room where there was none
_LOCK_SECONDS = 2.0  # blocks the event loop: well below the silence after which a client gives a daemon up
_STILL_LOCKED_SECONDS = 0.05  # after a wait without success: the holder is not writing a line


class AuditTrail:
    """Appends to the trail in a folder. A context manager, which closes what the first line opened.

    Args:
        directory: the trail's folder; made with the first line.
        max_bytes: how much its files may take; zero for any amount. Beyond it the oldest is removed.
        remembered: a head that the trail must have; None if none is remembered.
    """

    def __init__(self, directory: Path, max_bytes: int, remembered: RememberedHead | None = None) -> None:
        self._directory = directory
        self._remembered = remembered
        self._max_bytes = max_bytes
        self._file_bytes = min(_FILE_BYTES, max_bytes // _FILES) if max_bytes else _FILE_BYTES
        if (limit := max_file_bytes()) is not None:  # a file is full when one more line might be too much
            self._file_bytes = max(1, min(self._file_bytes, limit - MAX_LINE_BYTES))
        self._room_bytes = min(_ROOM_BYTES, self._file_bytes // _FILES)
        self._look_at = 0.0
        self._is_full = False  # whether no room could be set aside the last time
        self._lock_seconds = _LOCK_SECONDS
        self._folder = self._head_file = self._file = -1
        self._name, self._inode = "", 0
        self._size = self._older_bytes = self._room_left = 0
        self._head, self._head_bytes = GENESIS, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def record(self, event: Mapping[str, Any], *, urgent: bool = False) -> None:
        """Append a line. When this returns, it is there for every other process.

        Args:
            event: what is to be told, as JSON has it. What denies holds little of what was asked.
            urgent: whether it may use the last of the room that is set aside, on a disk that is full.

        Raises:
            AuditFailed: it could not be appended; nothing of it is there.
            ValueError, TypeError: it is none that can be told.
        """
        if event.get("event") in (RELEASED, RESUMED):
            raise ValueError(f"the event {event['event']!r} is the trail's own")
        try:
            self._open_folder()
            self._lock()
            try:
                if not self._is_known_end():
                    self._find_end()
                try:
                    self._make_space()
                except FileExistsError:  # somebody was killed who had just begun it
                    self._find_end()
                    self._make_space()
                self._keep_reserve(urgent=urgent)
                self._append(event)
            finally:
                fcntl.flock(self._folder, fcntl.LOCK_UN)
        except LockHeld as error:
            self.close()
            raise AuditFailed(error.problem, error.advice) from error
        except OSError as error:
            self.close()
            raise AuditFailed(error.strerror or str(error)) from error

    def close(self) -> None:
        """Close the files. Another line would open them again."""
        self._close_files()
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = -1

    def _lock(self) -> None:
        """Take the lock on the folder.

        Raises:
            LockHeld: another process holds it for longer than a line takes.
        """
        try:
            lock_within(self._folder, self._directory, self._lock_seconds)
        except LockHeld:
            self._lock_seconds = _STILL_LOCKED_SECONDS
            raise
        self._lock_seconds = _LOCK_SECONDS

    def _open_folder(self) -> None:
        """Open the trail's folder, also when another has taken the place of the one that was open."""
        if self._folder >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._folder), os.stat(self._directory)):
                    return
            log.error("the audit trail was moved away, and another is begun", folder=str(self._directory))
            self.close()
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _is_known_end(self) -> bool:
        """Tell whether the trail ends where it did, or where another process has just written."""
        if self._file < 0:
            return False
        try:
            found = os.stat(self._name, dir_fd=self._folder)
        except FileNotFoundError:
            return False
        if found.st_ino != self._inode or os.fstat(self._head_file).st_nlink == 0:
            return False
        self._room_left = found.st_blocks * 512 - found.st_size  # stat(2): units of 512
        told = os.pread(self._head_file, len(self._head_bytes) + 1, 0)
        if told == self._head_bytes and found.st_size == self._size:
            return True
        line, unfinished_bytes = read_end(self._file, found.st_size)
        try:
            head = read_line(line).head
        except LineInvalid:
            return False
        if unfinished_bytes or told != format_head(head) or head.seq < self._head.seq:
            return False
        self._size, self._head, self._head_bytes = found.st_size, head, told
        return True

    def _find_end(self) -> None:
        """Find where the trail ends, or begin it, and mend what a crash left."""
        self._close_files()
        known = self._known_head()
        self._head_file = private(HEAD, os.O_RDWR | os.O_CREAT, self._folder)
        data = os.read(self._head_file, len(format_head(GENESIS)) + 1)
        told = parse_head(data)
        end = open_end(self._folder)
        self._older_bytes = end.older_bytes
        if end.descriptor is not None:
            self._take_file(end.descriptor, end.name, end.size)
        is_new = not data and end.descriptor is None
        if end.head is not None and (is_new or told in (end.head, end.before)):
            if known in (end.head, end.before) or continues(self._folder, known):
                self._write_head(end.head)
                return
            told = known
        log.error("the audit trail does not end as it was left", folder=str(self._directory), head=told, end=end.head)
        if end.descriptor is None:  # go on counting, so that no number is used twice
            self._write_head(max(known, told or GENESIS, key=lambda head: head.seq))
        elif end.head is not None:
            self._write_head(end.head)
        else:  # the last line says nothing that could be gone on from
            self._write_head(told if told is not None and told.seq >= end.first_seq else Head(end.first_seq, ""))
            self._begin_file()
        self._make_space()
        self._append({"event": RESUMED, "head": None if told is None else asdict(told)})
        self._remember()

    def _known_head(self) -> Head:
        """Return a head that the trail must have: this process's last one, or else the remembered one."""
        if self._head == GENESIS and self._remembered is not None:
            return self._remembered.read() or GENESIS
        return self._head

    def _remember(self) -> None:
        """Remember the head. Otherwise other processes and the next daemon would report the same lines again."""
        if self._remembered is None:
            return
        try:
            if (head := synced_head(self._directory, None)) is not None:
                self._remembered.keep(head)
        except OSError as error:
            log.error("the audit trail's head is not remembered", error=str(error))

    def _make_space(self) -> None:
        """Begin a new file when it is time, remove the oldest when there are too many, and set room aside."""
        if self._file < 0 or self._size >= self._file_bytes:
            self._begin_file()
        if self._room_left < self._room_bytes // 2 and time.monotonic() >= self._look_at:
            self._set_room_aside(self._file, self._size)
        if self._max_bytes and self._older_bytes + self._size > self._max_bytes:
            self._release()

    def _begin_file(self) -> None:
        """Begin a new file, unless there is no room for it and the last one can still take lines."""
        if self._file >= 0 and time.monotonic() < self._look_at:
            return
        name = file_name(self._head.seq + 1)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._folder)
        if not self._set_room_aside(file, 0) and self._file >= 0:
            os.close(file)
            os.unlink(name, dir_fd=self._folder)
            return
        if self._file >= 0:
            os.ftruncate(self._file, self._size)  # gives back what is set aside behind the end
            os.close(self._file)
            self._older_bytes += self._size
        self._take_file(file, name, 0)

    def _take_file(self, file: int, name: str, size: int) -> None:
        found = os.fstat(file)
        self._file, self._name, self._inode, self._size = file, name, found.st_ino, size
        self._room_left = found.st_blocks * 512 - size

    def _set_room_aside(self, file: int, size: int) -> bool:
        """Take room behind the end of a file; return whether there was any, or none can be taken here."""
        try:
            linux.set_room_aside(file, size, self._room_bytes)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._room_bytes = 0
                return True
            if error.errno not in NO_ROOM:
                raise
            self._look_at = time.monotonic() + _LOOK_SECONDS
            self._is_full = True
            return False
        self._room_left, self._is_full = self._room_bytes, False
        return True

    def _release(self) -> None:
        """Remove the oldest files. The trail says so before, or it would seem to have lost its beginning."""
        files = list_files(self._folder)
        sizes = {file.name: os.stat(file.name, dir_fd=self._folder).st_size for file in files}
        for file, following in itertools.pairwise(files):
            if sum(sizes.values()) <= self._max_bytes:
                break
            last = self._read_last(file.name) or Head(following.first_seq - 1, "")
            self._append({"event": RELEASED, "file": file.name, "last": asdict(last)})
            os.unlink(file.name, dir_fd=self._folder)
            del sizes[file.name]
        self._older_bytes = sum(sizes.values()) - sizes[self._name]

    def _read_last(self, name: str) -> Head | None:
        """Read which line of a file is its last; None where somebody changed it, of which a verification tells."""
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=self._folder)) as file:
            line, _ = read_end(file.fileno(), os.fstat(file.fileno()).st_size)
        try:
            return read_line(line).head
        except LineInvalid as error:
            log.error("a file of the audit trail that is removed was changed", file=name, problem=str(error))
            return None

    def _keep_reserve(self, *, urgent: bool) -> None:
        """Keep the last of the room that is set aside from what is not urgent, once no more can be had.

        Raises:
            OSError: it is what is left.
        """
        if self._is_full and not urgent and self._room_left < self._room_bytes // _RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _append(self, event: Mapping[str, Any]) -> None:
        most = _DENIED_BYTES if event.get("verdict") == "deny" else MAX_LINE_BYTES
        line, head = make_line(event, self._head, datetime.now(UTC).isoformat(timespec="microseconds"), most)
        try:
            _require_whole(os.write(self._file, line), line)
            self._write_head(head)
        except OSError:
            os.ftruncate(self._file, self._size)
            os.pwrite(self._head_file, self._head_bytes, 0)
            raise
        self._size += len(line)

    def _write_head(self, head: Head) -> None:
        data = format_head(head)
        _require_whole(os.pwrite(self._head_file, data, 0), data)
        self._head, self._head_bytes = head, data

    def _close_files(self) -> None:
        for descriptor in (self._file, self._head_file):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._head_file = -1


def _require_whole(written_bytes: int, data: bytes) -> None:
    """See that a write was whole; one that was not has met the end of the room on the disk (write(2))."""
    if written_bytes != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
