"""Capturing: what a job prints goes from its pipes into its spool, however slow or full the disk is.

A full disk is waited for: what was read and has no room is held, nothing more is read, and the job is held up when its
pipes are full.

A file that may not grow (EFBIG) is not waited for: that is the end of the log, and the reason is kept. The pipes are
closed, so the job learns of it by SIGPIPE or EPIPE when it prints on (pipe(7)), as one whose reader has gone.
"""

import contextlib
import errno
import fcntl
import math
import mmap
import os
import select
import time
from collections.abc import Callable

from workerd.engine.errand import Errand
from workerd.engine.errors import CANNOT_GROW, NO_ROOM
from workerd.engine.files import max_file_bytes
from workerd.engine.folder import JobFolder
from workerd.engine.job import Durability, JobSpec, Stream, StreamSummary
from workerd.engine.journal import LogTail
from workerd.engine.spool import SpoolWriter

ROOM_SECONDS = 1.0  # between two looks for room: no file system tells when there is some
# Denied at the user's limit, where new pipes, a job's own too, shrink to a page (pipe(7), pipe-user-pages-soft): hence
# no more than this.
_PIPE_SIZE = 1 << 18
_READ_SIZE = 1 << 20
_SYNC_SECONDS = 5.0
_BEGIN_SECONDS, _DISK_SECONDS = 1.0, 30.0  # how long to wait at the end for the thread that forces the log to the disk
_SYNC_BYTES = 64 << 20  # so that the end of a job that prints much has little left to wait for


class Capture:
    """The pipes of one job and the log that they are read into.

    Its owner waits until a pipe can be read or `next_time` has come, and calls `read` or `catch_up`.

    Args:
        folder: the job's.
        spec: the job's.
        epoll: where each pipe is registered for as long as it is to be read.
        report: is given what goes wrong meanwhile, for people.

    Attributes:
        ended_early: why the log or one of its streams has ended although the job has not, for people; empty while they
            go on.

    Raises:
        OSError: the log cannot be made.
    """

    def __init__(self, folder: JobFolder, spec: JobSpec, epoll: select.epoll, report: Callable[[str], None]) -> None:
        self.ended_early = ""
        self._report = report
        self._durability = spec.durability
        self._epoll = epoll
        self._spool = SpoolWriter(folder, spec.max_log_bytes)
        self._pipes: dict[int, Stream] = {}
        self._buffer = mmap.mmap(-1, _READ_SIZE)  # takes memory only as far as it is ever filled
        self._held: tuple[Stream, int] | None = None  # what is in the buffer and not in the spool: so many bytes
        self._retry_at = self._sync_at = math.inf
        self._unsynced = 0
        self._syncing: Errand | None = None
        self._sync_problem = self._reported_problem = ""

    @property
    def waits_for_room(self) -> bool:
        """Whether there is output that the disk has no room for, so that none is read."""
        return self._held is not None

    @property
    def next_time(self) -> float:
        """When `catch_up` has something to do (time.monotonic); infinity for not as things are."""
        return min(self._retry_at, self._sync_at)

    def open_pipe(self, stream: Stream) -> int:
        """Make the pipe that is to become one of the job's streams, and return the end that is the job's."""
        read_end, write_end = os.pipe()
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        os.set_blocking(read_end, False)
        self._pipes[read_end] = stream
        self._epoll.register(read_end, select.EPOLLIN)
        return write_end

    def read(self, pipe: int) -> None:
        """Move what one pipe holds into the spool. When there is no room for it, read no more until there is."""
        if self._held is None and pipe in self._pipes and self._fill(pipe) and not try_write(self._store):
            for each in self._pipes:
                self._epoll.unregister(each)
            self._retry_at = time.monotonic() + ROOM_SECONDS

    def catch_up(self, now: float) -> None:
        """Do what has become due: store what had no room, force to the disk what was written.

        Args:
            now: the time (time.monotonic).
        """
        if now >= self._retry_at:
            self._retry()
        if now >= self._sync_at:
            self._start_sync()
        self._report_sync_problem()

    def drain(self) -> None:
        """Read the rest of what is in the pipes, once nobody of the job can write any more. Waits for room."""
        wait_for_room(self._store)
        for pipe in list(self._pipes):
            while pipe in self._pipes and self._fill(pipe):
                wait_for_room(self._store)

    def finish(self) -> LogTail | None:
        """Force the drained log to the disk: all of it, or all but a short tail that the journal is to hold.

        Wait for room, and for the disk: no end is reported before it is on the disk.

        Returns:
            The tail, which only the caller has for certain; None when everything is on the disk.
        """
        if self._syncing is not None:
            self._syncing.wait(_BEGIN_SECONDS, _DISK_SECONDS)
        self._report_sync_problem()
        if (tail := self._spool.tail()) is None:
            wait_for_room(self._spool.sync)
        return tail

    def summary(self, stream: Stream) -> StreamSummary:
        """Return what one stream has amounted to."""
        return self._spool.summary(stream)

    def end(self) -> None:
        """Write in the log that nothing will follow, and close it. Waits for room, and not for the disk."""
        wait_for_room(self._spool.end)
        self._spool.close()

    def _fill(self, pipe: int) -> bool:
        """Read what one pipe holds into the buffer; return whether there was anything."""
        try:
            length = os.readv(pipe, [self._buffer])
        except BlockingIOError:
            return False
        except OSError as error:  # the job put a page of a file there that cannot be read (splice(2), EIO)
            stream = self._pipes[pipe]
            end = f"{stream.name.lower()} ended at byte {self._spool.summary(stream).size_bytes}"
            self.ended_early = f"{end}: what the job put into it cannot be read: {error.strerror}"
            length = 0
        if length == 0:
            del self._pipes[pipe]
            os.close(pipe)  # which takes it out of the epoll, too (epoll(7))
            return False
        self._held = self._pipes[pipe], length
        return True

    def _store(self) -> None:
        """Put what is held into the spool, unless that may not grow: then end the log."""
        if self._held is None:
            return
        stream, length = self._held
        with memoryview(self._buffer) as view:
            try:
                self._spool.append(stream, view[:length])
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                length = self._store_what_fits(stream, view[:length])
                self._end_early()
        self._held = None
        self._unsynced += length
        if self._durability is Durability.INTERVAL:
            wait = _SYNC_SECONDS if self._unsynced < _SYNC_BYTES else 0.0
            self._sync_at = min(self._sync_at, time.monotonic() + wait)

    def _store_what_fits(self, stream: Stream, data: memoryview) -> int:
        """Put the beginning of what the spool does not take into it; return how many bytes."""
        fitting = data[: max(0, (max_file_bytes() or 0) - self._spool.size)]
        try:
            if fitting:
                self._spool.append(stream, fitting)
        except OSError as error:  # it is the index that may not grow
            if error.errno != errno.EFBIG:
                raise
            return 0
        return len(fitting)

    def _end_early(self) -> None:
        if (limit := max_file_bytes()) is None:
            problem = "its file system takes no larger file"
        else:
            problem = f"a file of the daemon may have {limit} bytes and no more (RLIMIT_FSIZE)"
        self.ended_early = f"the log ended at byte {self._spool.size}: {problem}"
        for pipe in self._pipes:
            os.close(pipe)  # which takes it out of the epoll, too (epoll(7))
        self._pipes.clear()

    def _retry(self) -> None:
        """Store what there was no room for, and go on reading."""
        if try_write(self._store):
            self._retry_at = math.inf
            for pipe in self._pipes:
                self._epoll.register(pipe, select.EPOLLIN)
        else:
            self._retry_at = time.monotonic() + ROOM_SECONDS

    def _start_sync(self) -> None:
        """Force the log to the disk in a thread, so that the job does not wait."""
        if self._syncing is not None and self._syncing.is_at_work:
            self._sync_at = time.monotonic() + _SYNC_SECONDS
            return
        try:
            self._syncing = Errand(self._sync)
        except (RuntimeError, MemoryError) as error:  # no thread: the job may have taken the last process itself
            self._sync_problem = str(error)
            self._sync_at = time.monotonic() + _SYNC_SECONDS
            return
        self._sync_at = math.inf
        self._unsynced = 0

    def _sync(self) -> None:
        try:
            self._spool.sync()
        except OSError as error:
            self._sync_problem = str(error)

    def _report_sync_problem(self) -> None:
        """Report that the log is not on the disk as it should be; once, though what fails does so each time."""
        if self._sync_problem != self._reported_problem:
            self._reported_problem = self._sync_problem
            self._report(f"the log could not be forced to the disk: {self._sync_problem}\n")


def try_write(write: Callable[[], None]) -> bool:
    """Write something; return False if there was no room for it, on the disk or in a file that may not grow."""
    try:
        write()
    except OSError as error:
        if error.errno not in CANNOT_GROW:
            raise
        return False
    return True


def wait_for_room(write: Callable[[], None]) -> None:
    """Write something as soon as there is room for it on the disk.

    Raises:
        OSError: anything else keeps it from being written, such as a file that may not grow.
    """
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
        time.sleep(ROOM_SECONDS)
