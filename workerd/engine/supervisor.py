"""The supervisor: one small process for each job, which outlives the daemon.

It starts the program, writes down everything that the job prints, ends the job when it is told to or its time is over,
clears away what the program left behind, and writes the end. It is forked from the zygote and single-threaded; it waits
in one place for everything that can happen (epoll(7)).

    phase       event        what is done                                    next phase
    RUNNING     STOP         SIGTERM to the whole job, the grace runs        STOPPING
    RUNNING     TIMEOUT      the same                                        STOPPING
    RUNNING     EXITED       what the program left behind gets SIGKILL       CLEARING
    STOPPING    STOP         the shorter of the two graces runs              STOPPING
    STOPPING    GRACE_OVER   SIGKILL to the whole job                        CLEARING
    STOPPING    EXITED       the same                                        CLEARING
    CLEARING    EXITED       nothing more                                    CLEARING
    CLEARING    STOP         nothing more                                    CLEARING
    CLEARING    EMPTY        the pipes are drained, the end is written       ENDED

EMPTY is when no descendant is left. Nobody of the job can write any more then, so what is in the pipes is the rest of
the output, and draining them does not have to wait for whatever stranger may hold one open.

A full disk is waited for: what was read and has no room is held, nothing more is read, and the job is held up when its
pipes are full. Stopping works meanwhile. The end is written, as everything else, when there is room.
"""

import contextlib
import enum
import fcntl
import math
import mmap
import os
import resource
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workerd.engine import cgroup, linux, program, tree
from workerd.engine.errors import SHORTAGES, CannotStart, ResourcesExhausted
from workerd.engine.folder import JobFolder, is_no_room, sync_path
from workerd.engine.job import (
    Cause,
    Durability,
    Exited,
    JobEnd,
    JobSpec,
    JobState,
    JobStatus,
    Killed,
    StopOrder,
    Stopped,
    Stream,
    TimedOut,
    User,
)
from workerd.engine.reply import STARTED, encode_failure
from workerd.engine.spool import SpoolWriter

# Denied at the user's limit, where new pipes, a job's own too, shrink to a page (pipe(7), pipe-user-pages-soft): hence
# no more than this.
_PIPE_SIZE = 1 << 18
_READ_SIZE = 1 << 20
_ROOM_SECONDS = 1.0  # between two looks for room: no file system tells when there is some
_SYNC_SECONDS = 5.0
_SYNC_BYTES = 64 << 20  # so that the end of a job that prints much has little left to wait for
_LONGEST_WAIT_SECONDS = 86_400.0  # epoll_wait(2) counts milliseconds in an int


class Phase(enum.Enum):
    """Where the supervisor is with its job."""

    RUNNING = enum.auto()
    STOPPING = enum.auto()
    CLEARING = enum.auto()
    ENDED = enum.auto()


class Event(enum.Enum):
    """What can happen to a job."""

    STOP = enum.auto()
    TIMEOUT = enum.auto()
    GRACE_OVER = enum.auto()
    EXITED = enum.auto()
    EMPTY = enum.auto()


@dataclass
class _Ending:
    """Why a job is being ended: by whom, or because its time was over when nobody is named."""

    by: User | None
    signal: signal.Signals


def supervise(folder: JobFolder, lock: int, reply: int) -> None:
    """Run one job from its start to its end. The caller is a process of its own for this.

    Args:
        folder: holds the spec and nothing else.
        lock: the descriptor that holds the folder's lock; kept until the end.
        reply: where to say whether the program runs (`workerd.engine.reply`).
    """
    supervisor = Supervisor(folder, folder.read_spec())
    try:
        supervisor.start()
    except CannotStart as error:
        folder.status.unlink(missing_ok=True)  # nothing was executed: without a status the folder says so
        _answer(reply, encode_failure(error))
        return
    except OSError as error:  # before anything was executed
        folder.status.unlink(missing_ok=True)
        if error.errno in SHORTAGES:
            problem = f"{error.filename or 'its supervisor'}: {error.strerror}"
            _answer(reply, encode_failure(ResourcesExhausted(supervisor.spec.program, problem)))
        raise
    supervisor.say_running()
    _answer(reply, STARTED)
    os.close(reply)
    supervisor.run()
    os.close(lock)


class Supervisor:
    """One job's life as a table of phases and events."""

    def __init__(self, folder: JobFolder, spec: JobSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.phase = Phase.RUNNING
        self._status = JobStatus(state=JobState.STARTING)
        self._ending: _Ending | None = None
        self._outcome: Exited | Killed | None = None
        self._deadline: tuple[float, Event] | None = None
        self._buffer = mmap.mmap(-1, _READ_SIZE)  # takes memory only as far as it is ever filled
        self._pipes: dict[int, Stream] = {}
        self._held: tuple[Stream, int] | None = None  # what is in the buffer and has no room on the disk: so many bytes
        self._status_is_written = True
        self._retry_at = self._sync_at = math.inf
        self._unsynced = 0
        self._syncing: threading.Thread | None = None
        self._epoll = select.epoll()
        self._table: dict[tuple[Phase, Event], Callable[[], Phase]] = {
            (Phase.RUNNING, Event.STOP): self._terminate,
            (Phase.RUNNING, Event.TIMEOUT): self._terminate,
            (Phase.RUNNING, Event.EXITED): self._clear,
            (Phase.STOPPING, Event.STOP): self._shorten,
            (Phase.STOPPING, Event.GRACE_OVER): self._kill,
            (Phase.STOPPING, Event.EXITED): self._clear,
            (Phase.CLEARING, Event.EXITED): lambda: Phase.CLEARING,
            (Phase.CLEARING, Event.STOP): lambda: Phase.CLEARING,
            (Phase.CLEARING, Event.EMPTY): self._end,
        }
        self._order: StopOrder | None = None

    def start(self) -> None:
        """Start the program.

        Raises:
            CannotStart: with the reason.
        """
        linux.become_subreaper()
        self._spool = SpoolWriter(self.folder, self.spec.max_log_bytes)
        self._control = self._open_control()
        self._children = self._watch_children()
        stdout, stderr = self._open_pipe(Stream.STDOUT), self._open_pipe(Stream.STDERR)
        self._cgroup = cgroup.create(self.spec.id)
        self._status = JobStatus(state=JobState.STARTING, cgroup=str(self._cgroup or ""))
        self.folder.write_status(self._status)
        self.folder.make_reserve()
        try:
            self._pid = program.start(self.spec, stdout=stdout, stderr=stderr, cgroup_directory=self._cgroup)
        except CannotStart:
            if self._cgroup is not None:
                cgroup.remove(self._cgroup)
            raise
        os.close(stdout)
        os.close(stderr)
        if self.spec.timeout_seconds is not None:
            self._deadline = (time.monotonic() + self.spec.timeout_seconds, Event.TIMEOUT)

    def say_running(self) -> None:
        """Write down that the program runs."""
        self._replace_status(state=JobState.RUNNING, pid=self._pid, started_ns=time.time_ns())

    def run(self) -> None:
        """Watch over the job until it has ended."""
        while True:
            for descriptor, _ in self._epoll.poll(self._seconds_left()):
                if descriptor == self._children:
                    os.read(self._children, 4096)
                    self._reap()
                elif descriptor == self._control:
                    self._take_orders()
                elif descriptor in self._pipes and self._held is None:
                    self._capture(descriptor)
                if self.phase is Phase.ENDED:
                    return
            now = time.monotonic()
            if self._deadline is not None and now >= self._deadline[0]:
                event = self._deadline[1]
                self._deadline = None
                self._handle(event)
            if now >= self._retry_at:
                self._retry()
            if now >= self._sync_at:
                self._start_sync()

    def _handle(self, event: Event) -> None:
        self.phase = self._table[self.phase, event]()

    # What is done for an event

    def _terminate(self) -> Phase:
        if self._order is None:
            self._ending = _Ending(None, signal.SIGTERM)
            grace_seconds = self.spec.grace_seconds
        else:
            self._ending = _Ending(self._order.by, signal.SIGTERM)
            grace_seconds = self._order.grace_seconds
        self._replace_status(state=JobState.STOPPING)
        if grace_seconds == 0:
            return self._kill()
        self._deadline = (time.monotonic() + grace_seconds, Event.GRACE_OVER)
        # SIGCONT: a stopped process acts on SIGTERM only once it goes on (signal(7)).
        tree.signal_descendants(os.getpid(), signal.SIGTERM, signal.SIGCONT)
        return Phase.STOPPING

    def _shorten(self) -> Phase:
        if self._order is None or self._deadline is None:
            raise AssertionError("a job is stopping without an order or a deadline")
        self._deadline = min(self._deadline, (time.monotonic() + self._order.grace_seconds, Event.GRACE_OVER))
        return Phase.STOPPING

    def _kill(self) -> Phase:
        self._deadline = None
        if self._ending is not None:
            self._ending.signal = signal.SIGKILL
        self._kill_everything()
        return Phase.CLEARING

    def _clear(self) -> Phase:
        self._deadline = None
        return Phase.CLEARING

    def _end(self) -> Phase:
        _wait_for_room(self._store)
        for descriptor in list(self._pipes):
            while self._read(descriptor):
                _wait_for_room(self._store)
        ended_ns = time.time_ns()
        if self._syncing is not None:
            self._syncing.join()
        _wait_for_room(self._spool.sync)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        end = JobEnd(
            cause=self._cause(),
            started_ns=self._status.started_ns,
            ended_ns=max(ended_ns, self._status.started_ns),
            user_cpu_seconds=usage.ru_utime,
            system_cpu_seconds=usage.ru_stime,
            peak_memory_bytes=usage.ru_maxrss * 1024,
            stdout=self._spool.summary(Stream.STDOUT),
            stderr=self._spool.summary(Stream.STDERR),
        )
        if self._cgroup is not None:
            cgroup.remove(self._cgroup)
        os.close(self._control)
        self._status = msgspec.structs.replace(self._status, state=JobState.ENDED, waits_for_room=False, end=end)
        _wait_for_room(lambda: self.folder.write_status(self._status, sync=True))
        _wait_for_room(self._spool.end)
        _wait_for_room(self._spool.sync)
        self._spool.close()
        self.folder.reserve.unlink(missing_ok=True)
        return Phase.ENDED

    def _cause(self) -> Cause:
        if self._outcome is None:
            raise AssertionError("a job has ended without its program")
        if self._ending is None:
            return self._outcome
        if self._ending.by is not None:
            return Stopped(self._ending.by, self._ending.signal, self._outcome)
        return TimedOut(self.spec.timeout_seconds or 0.0, self._ending.signal)

    # Where events come from

    def _take_orders(self) -> None:
        self._reap()  # an order that comes after the program's end does not stop it
        if self.phase is Phase.ENDED:
            return
        for line in os.read(self._control, select.PIPE_BUF * 16).splitlines():
            try:
                self._order = msgspec.json.decode(line, type=StopOrder)
            except msgspec.MsgspecError:
                self.folder.report_fault(f"an order on the control pipe was not understood: {line!r}\n")
                continue
            self._handle(Event.STOP)

    def _reap(self) -> None:
        """Take leave of every process that has ended: the program, its orphans, and at last there are none."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._handle(Event.EMPTY)
                return
            if pid == 0:
                break
            if pid == self._pid:
                code = os.waitstatus_to_exitcode(status)
                self._outcome = Exited(code) if code >= 0 else Killed(-code)
                self._handle(Event.EXITED)
        if self.phase is Phase.CLEARING:  # what was left behind, or was forked while the others were being killed
            if self._status.state is not JobState.STOPPING:
                self._replace_status(state=JobState.STOPPING)
            self._kill_everything()

    def _capture(self, descriptor: int) -> None:
        """Move what one pipe holds into the spool. When there is no room for it, read no more until there is."""
        if self._read(descriptor) and not _try(self._store):
            for pipe in self._pipes:
                self._epoll.unregister(pipe)
            self._replace_status(waits_for_room=True)
            self._retry_at = time.monotonic() + _ROOM_SECONDS

    def _read(self, descriptor: int) -> bool:
        """Read what one pipe holds into the buffer; return whether there was anything."""
        try:
            length = os.readv(descriptor, [self._buffer])
        except BlockingIOError:
            return False
        if length == 0:
            del self._pipes[descriptor]
            os.close(descriptor)  # which takes it out of the epoll, too (epoll(7))
            return False
        self._held = self._pipes[descriptor], length
        return True

    def _store(self) -> None:
        """Put what is held into the spool."""
        if self._held is None:
            return
        stream, length = self._held
        with memoryview(self._buffer) as view:
            self._spool.append(stream, view[:length])
        self._held = None
        self._unsynced += length
        if self.spec.durability is Durability.INTERVAL:
            wait = _SYNC_SECONDS if self._unsynced < _SYNC_BYTES else 0.0
            self._sync_at = min(self._sync_at, time.monotonic() + wait)

    def _retry(self) -> None:
        """Do what there was no room for."""
        self._retry_at = math.inf
        if not self._status_is_written:
            self._replace_status()
        if self._held is not None:
            if _try(self._store):
                for pipe in self._pipes:
                    self._epoll.register(pipe, select.EPOLLIN)
                self._replace_status(waits_for_room=False)
            else:
                self._retry_at = time.monotonic() + _ROOM_SECONDS

    def _start_sync(self) -> None:
        """Have a thread wait for the disk, so that the job does not have to."""
        if self._syncing is not None and self._syncing.is_alive():
            self._sync_at = time.monotonic() + _SYNC_SECONDS
            return
        self._sync_at = math.inf
        self._unsynced = 0
        self._syncing = threading.Thread(target=self._sync)
        self._syncing.start()

    def _sync(self) -> None:
        try:
            self._spool.sync()
            sync_path(self.folder.spec)
            sync_path(self.folder.path)
        except OSError as error:
            self.folder.report_fault(f"the log could not be forced to the disk: {error}\n")

    def _seconds_left(self) -> float | None:
        deadline = math.inf if self._deadline is None else self._deadline[0]
        next_time = min(deadline, self._retry_at, self._sync_at)
        return None if next_time == math.inf else min(max(0.0, next_time - time.monotonic()), _LONGEST_WAIT_SECONDS)

    # Small parts

    def _kill_everything(self) -> None:
        if self._cgroup is not None:
            cgroup.kill(self._cgroup)
        tree.signal_descendants(os.getpid(), signal.SIGKILL)

    def _replace_status(self, **changes: object) -> None:
        """Say where the job stands; as soon as there is room, if there is none."""
        self._status = msgspec.structs.replace(self._status, **changes)
        self._status_is_written = _try(lambda: self.folder.write_status(self._status))
        if not self._status_is_written:
            self._retry_at = time.monotonic() + _ROOM_SECONDS

    def _open_control(self) -> int:
        self.folder.control.unlink(missing_ok=True)  # of a supervisor that died before it executed anything
        os.mkfifo(self.folder.control, 0o600)
        # Open for writing too: it then never comes to end of file when a writer leaves (fifo(7)).
        descriptor = os.open(self.folder.control, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(descriptor, select.EPOLLIN)
        return descriptor

    def _watch_children(self) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._epoll.register(read_end, select.EPOLLIN)
        return read_end

    def _open_pipe(self, stream: Stream) -> int:
        read_end, write_end = os.pipe()
        with contextlib.suppress(PermissionError):
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        os.set_blocking(read_end, False)
        self._pipes[read_end] = stream
        self._epoll.register(read_end, select.EPOLLIN)
        return write_end


def _try(write: Callable[[], None]) -> bool:
    """Write something; return False if there was no room for it on the disk."""
    try:
        write()
    except OSError as error:
        if not is_no_room(error):
            raise
        return False
    return True


def _wait_for_room(write: Callable[[], None]) -> None:
    while not _try(write):
        time.sleep(_ROOM_SECONDS)


def _answer(reply: int, data: bytes) -> None:
    # The daemon may have been killed meanwhile; whoever repeats the spawn finds the job in its folder.
    with contextlib.suppress(BrokenPipeError):
        os.write(reply, data)


def _wake(*_: object) -> None:
    """Let SIGCHLD write to the wake-up descriptor, which it does only if it has a handler."""


def main(path: Path, lock: int, reply: int) -> None:
    """Be a supervisor: what the zygote calls in a process that it has just forked. A fault is written down."""
    folder = JobFolder(path)
    try:
        supervise(folder, lock, reply)
    except BaseException:
        folder.report_fault(traceback.format_exc())
        raise
