"""The supervisor: one small process for each job, which outlives the daemon.

It starts the program, has everything that the job prints captured (`workerd.engine.capture`), ends the job when it is
told to or its time is over, clears away what the program left behind, and writes the end. It is forked from the zygote
and single-threaded; it waits in one place for everything that can happen (epoll(7)).

    phase       event        what is done                                    next phase
    RUNNING     Stop         SIGTERM to the whole job, the grace runs        STOPPING
    RUNNING     EXITED       what the program left behind gets SIGKILL       CLEARING
    STOPPING    Stop         the shorter of the two graces runs              STOPPING
    STOPPING    GRACE_OVER   SIGKILL to the whole job                        CLEARING
    STOPPING    EXITED       the same                                        CLEARING
    CLEARING    EXITED       nothing more                                    CLEARING
    CLEARING    Stop         nothing more                                    CLEARING
    CLEARING    EMPTY        the pipes are drained, the end is written       ENDED

A timeout is a Stop that nobody ordered. EMPTY is when no descendant is left: nobody of the job can write any more then,
so what is in the pipes is the rest of the output, and draining them does not have to wait for whatever stranger may
hold one open.

Stopping works while a full disk holds the job up. The end is written, as everything else, when there is room.
"""

import contextlib
import enum
import math
import os
import resource
import select
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import msgspec

from workerd.engine import cgroup, linux, program, tree
from workerd.engine.capture import ROOM_SECONDS, Capture, try_write, wait_for_room
from workerd.engine.control import Control
from workerd.engine.errors import SHORTAGES, CannotStart, ResourcesExhausted, SpoolCorrupt
from workerd.engine.files import sync_names
from workerd.engine.folder import JobFolder
from workerd.engine.identity import boot_id, job_mark
from workerd.engine.job import (
    Cause,
    Durability,
    Exited,
    JobEnd,
    JobSpec,
    JobState,
    JobStatus,
    Killed,
    Stopped,
    Stream,
    TimedOut,
    User,
)
from workerd.engine.journal import Ended, Journal, JournalWriter, NotStarted, Stated, Supervised
from workerd.engine.log_notes import LogNotes
from workerd.engine.reply import GO, LONGEST, READY, STARTED, encode_failure

_GO_SECONDS = 60.0  # an engine that takes longer has been stopped; it asks another supervisor when it goes on
_LONGEST_WAIT_SECONDS = 86_400.0  # epoll_wait(2) counts milliseconds in an int


class Phase(enum.Enum):
    """Where the supervisor is with its job."""

    RUNNING = enum.auto()
    STOPPING = enum.auto()
    CLEARING = enum.auto()
    ENDED = enum.auto()


class Event(enum.Enum):
    """What can happen to a job by itself."""

    GRACE_OVER = enum.auto()
    EXITED = enum.auto()
    EMPTY = enum.auto()


@dataclass(frozen=True, slots=True)
class Stop:
    """The job is to be stopped.

    Attributes:
        by: who ordered it; None when its time is over.
        grace_seconds: between SIGTERM and SIGKILL; zero is SIGKILL at once.
    """

    by: User | None
    grace_seconds: float


@dataclass
class _Ending:
    """What the job's end is to be put down to: who ordered it, as in `Stop`, and the last signal that was sent."""

    by: User | None
    signal: signal.Signals


def supervise(folder: JobFolder, journal: Journal, lock: int, reply: int) -> None:
    """Run one job from its start to its end. The caller is a process of its own for this.

    Args:
        folder: holds the journal and nothing else of the job.
        journal: what that says: only what was asked for.
        lock: the descriptor of the journal, which holds the job's lock; kept until the end.
        reply: a socket on which to ask whether to go on, and to say whether the program runs (`workerd.engine.reply`).
    """
    if not _may_go_on(reply):
        return
    if journal.spec is None:
        raise SpoolCorrupt(folder.journal, "its first record does not check")
    writer = JournalWriter(lock, folder.job_id, journal.size)
    supervisor = Supervisor(folder, journal.spec, job_mark(journal.spool, folder.job_id), writer)
    try:
        try:
            supervisor.start()
        except CannotStart as error:
            try_write(lambda: writer.append(NotStarted()))
            _answer(reply, encode_failure(error))
            return
        except OSError as error:  # before anything was executed
            try_write(lambda: writer.append(NotStarted()))
            if error.errno in SHORTAGES:
                problem = f"{error.filename or 'its supervisor'}: {error.strerror}"
                _answer(reply, encode_failure(ResourcesExhausted(supervisor.spec.program, problem)))
            raise
        supervisor.say_running()
        if supervisor.spec.durability is Durability.INTERVAL:
            supervisor.force_job()
        _answer(reply, STARTED)
        os.close(reply)
        if supervisor.spec.durability is Durability.EXIT:
            supervisor.force_job()
        supervisor.run()
    except BaseException:
        writer.report_fault(traceback.format_exc())
        raise
    os.close(lock)


class Supervisor:
    """One job's life as a table of phases and events."""

    def __init__(self, folder: JobFolder, spec: JobSpec, mark: str, journal: JournalWriter) -> None:
        self.folder = folder
        self.spec = spec
        self._mark = mark
        self._journal = journal
        self.phase = Phase.RUNNING
        self._status = JobStatus(state=JobState.STARTING)
        self._status_retry_at = math.inf
        self._has_names = False  # whether the job's folder is on the disk with its names, and what was asked for
        self._ending: _Ending | None = None
        self._outcome: Exited | Killed | None = None
        self._deadline = math.inf  # of the timeout while the job runs, of the grace while it is being stopped
        self._epoll = select.epoll()

    def start(self) -> None:
        """Start the program.

        Raises:
            CannotStart: with the reason.
        """
        linux.become_subreaper()
        self._capture = Capture(self.folder, self.spec, self._epoll, self._journal.report_fault)
        self._control = Control(self.folder, self._journal.report_fault)
        self._epoll.register(self._control.descriptor, select.EPOLLIN)
        self._log_notes = LogNotes(self._capture)
        self._children = self._watch_children()
        stdout, stderr = self._capture.open_pipe(Stream.STDOUT), self._capture.open_pipe(Stream.STDERR)
        self._cgroup = cgroup.create(self._mark)
        pid = os.getpid()
        self._journal.set_room_aside()
        self._journal.append(Supervised(pid, tree.start_ticks(pid) or 0, boot_id(), str(self._cgroup or "")))
        try:
            self._pid, self._memory_before = program.start(
                self.spec, self._mark, self._control, stdout=stdout, stderr=stderr, cgroup_directory=self._cgroup
            )
        except CannotStart:
            if self._cgroup is not None:
                cgroup.remove(self._cgroup)
            raise
        os.close(stdout)
        os.close(stderr)
        if self.spec.timeout_seconds is not None:
            self._deadline = time.monotonic() + self.spec.timeout_seconds

    def say_running(self) -> None:
        """Write down that the program runs."""
        self._write_status(state=JobState.RUNNING, pid=self._pid, started_ns=time.time_ns())

    def force_job(self) -> None:
        """Wait until the disk has the job, so that a power cut leaves it lost and not gone."""
        try:
            self._force_names()
        except OSError as error:  # the program runs; the end waits for the same again
            self._journal.report_fault(f"the job could not be forced to the disk: {error}\n")

    def run(self) -> None:
        """Watch over the job until it has ended."""
        while True:
            for descriptor, _ in self._epoll.poll(self._seconds_left()):
                if descriptor == self._children:
                    os.read(self._children, 4096)
                    self._reap()
                elif descriptor == self._control.descriptor:
                    self._take_orders()
                else:
                    self._capture.read(descriptor)
                if self.phase is Phase.ENDED:
                    return
            now = time.monotonic()
            if now >= self._deadline:
                self._deadline = math.inf
                self._handle(Stop(None, self.spec.grace_seconds) if self.phase is Phase.RUNNING else Event.GRACE_OVER)
            if now >= self._status_retry_at:
                self._write_status()
            self._capture.catch_up(now)
            if changes := self._log_notes.due(self._status, now):
                self._write_status(**changes)

    def _handle(self, event: Stop | Event) -> None:
        match self.phase, event:
            case Phase.RUNNING, Stop():
                self.phase = self._terminate(event)
            case Phase.STOPPING, Stop():
                self.phase = self._shorten(event)
            case Phase.STOPPING, Event.GRACE_OVER:
                self.phase = self._kill()
            case Phase.RUNNING | Phase.STOPPING, Event.EXITED:
                self.phase = self._clear()
            case Phase.CLEARING, Stop() | Event.EXITED:
                pass
            case Phase.CLEARING, Event.EMPTY:
                self.phase = self._end()
            case _:
                raise AssertionError(f"{event} came while the job was {self.phase}")

    # What is done for an event

    def _terminate(self, stop: Stop) -> Phase:
        self._ending = _Ending(stop.by, signal.SIGTERM)
        self._write_status(state=JobState.STOPPING)
        if stop.grace_seconds == 0:
            return self._kill()
        self._deadline = time.monotonic() + stop.grace_seconds
        # SIGCONT: a stopped process acts on SIGTERM only once it goes on (signal(7)).
        tree.signal_descendants(os.getpid(), signal.SIGTERM, signal.SIGCONT)
        return Phase.STOPPING

    def _shorten(self, stop: Stop) -> Phase:
        self._deadline = min(self._deadline, time.monotonic() + stop.grace_seconds)
        return Phase.STOPPING

    def _kill(self) -> Phase:
        self._deadline = math.inf
        if self._ending is not None:
            self._ending.signal = signal.SIGKILL
        self._kill_everything()
        return Phase.CLEARING

    def _clear(self) -> Phase:
        self._deadline = math.inf
        return Phase.CLEARING

    def _end(self) -> Phase:
        self._capture.drain()
        ended_ns = time.time_ns()
        tail = self._capture.finish()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        end = JobEnd(
            cause=self._cause(),
            started_ns=self._status.started_ns,
            ended_ns=max(ended_ns, self._status.started_ns),
            user_cpu_seconds=usage.ru_utime,
            system_cpu_seconds=usage.ru_stime,
            peak_memory_bytes=program.peak_memory(usage, self._memory_before),
            stdout=self._capture.summary(Stream.STDOUT),
            stderr=self._capture.summary(Stream.STDERR),
            log_ended_early=self._capture.ended_early,
        )
        if self._cgroup is not None:
            cgroup.remove(self._cgroup)
        self._control.close()
        self._status = msgspec.structs.replace(self._status, **self._log_notes.current(), state=JobState.ENDED, end=end)
        wait_for_room(lambda: self._journal.append(Ended(self._status, tail)))
        try_write(self._journal.keep_room_to_tell)
        wait_for_room(self._journal.sync if self._has_names else self._force_names)
        self._capture.end()
        self._control.remove()
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
        for order in self._control.read():
            self._handle(Stop(order.by, order.grace_seconds))

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
                if self._outcome == Killed(signal.SIGKILL):
                    for order in self._control.read():
                        if order.kills:  # it came before the end, and brought it about
                            self._handle(Stop(order.by, 0.0))
                self._handle(Event.EXITED)
        if self.phase is Phase.CLEARING:  # what was left behind, or was forked while the others were being killed
            if self._status.state is not JobState.STOPPING:
                self._write_status(state=JobState.STOPPING)
            self._kill_everything()

    def _seconds_left(self) -> float | None:
        next_time = min(self._deadline, self._status_retry_at, self._capture.next_time, self._log_notes.next_time)
        return None if next_time == math.inf else min(max(0.0, next_time - time.monotonic()), _LONGEST_WAIT_SECONDS)

    # Small parts

    def _kill_everything(self) -> None:
        if self._cgroup is not None:
            cgroup.kill(self._cgroup)
        tree.signal_descendants(os.getpid(), signal.SIGKILL)

    def _force_names(self) -> None:
        """Wait until the journal is on the disk, and the folder with its names."""
        self._journal.sync()
        sync_names(self.folder.path)
        self._has_names = True

    def _write_status(self, **changes: object) -> None:
        """Write where the job stands; as soon as there is room, if there is none."""
        self._status = msgspec.structs.replace(self._status, **changes)
        is_written = try_write(lambda: self._journal.append(Stated(self._status)))
        self._status_retry_at = math.inf if is_written else time.monotonic() + ROOM_SECONDS

    def _watch_children(self) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._epoll.register(read_end, select.EPOLLIN)
        return read_end


def _may_go_on(reply: int) -> bool:
    """Return whether the engine still waits for the job to be started. Nothing of the job was touched before that."""
    engine = select.poll()
    engine.register(reply, select.POLLIN)
    try:
        os.write(reply, READY)
        return bool(engine.poll(_GO_SECONDS * 1000)) and os.read(reply, LONGEST) == GO
    except (BrokenPipeError, ConnectionResetError):
        return False


def _answer(reply: int, data: bytes) -> None:
    # The daemon may have been killed meanwhile; whoever repeats the spawn finds the job in its folder.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        os.write(reply, data)


def _wake(*_: object) -> None:
    """Let SIGCHLD write to the wake-up descriptor, which it does only if it has a handler."""


def main(job_id: str, directory: int, lock: int, reply: int) -> None:
    """Be a supervisor: what the zygote calls in a process that it has just forked.

    Args:
        job_id: the job's.
        directory: a descriptor of its folder, which may be moved meanwhile.
        lock: as in `supervise`.
        reply: as in `supervise`.
    """
    os.fchdir(directory)
    os.close(directory)
    folder = JobFolder(Path(), job_id)
    supervise(folder, folder.read(), lock, reply)
