"""Starting supervisors: the engine's side of the zygote."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Self

import structlog

from system import environment, pidfd
from workerd.engine import linux
from workerd.engine.errors import LauncherFailed, SpawnGivenUp, SpoolCorrupt, StartUnconfirmed
from workerd.engine.folder import JobFolder
from workerd.engine.remains import continue_supervisor
from workerd.engine.reply import GO, LONGEST, READY, STARTED, decode_failure

log = structlog.get_logger()
_ATTEMPTS = 3
_ENDED = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED)  # of a send: nobody is there any more
_STOP_SECONDS = 1.0
_STUCK_SECONDS = 10.0
_LOOK_SECONDS = 2.0  # a program that runs is confirmed at once, unless its disk is slow or its supervisor was stopped
_READY_SECONDS = 60.0  # for a supervisor to be made, on a machine that is overloaded
START_SECONDS = 60.0  # for a program to run: its file may be on another machine, and the journal is forced to the disk


class Launcher:
    """Keeps a zygote running and asks it for supervisors."""

    def __init__(self) -> None:
        self._zygote: subprocess.Popen[bytes] | None = None
        self._unended: list[subprocess.Popen[bytes]] = []  # zygotes that SIGKILL has not ended yet
        self._requests: socket.socket | None = None
        self._sending = asyncio.Lock()
        self._last_ready = 0.0  # when a supervisor was ready (time.monotonic)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def launch(self, folder: JobFolder, lock: int, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Start a supervisor for the job in a folder, and wait until its program runs.

        Args:
            folder: the job's, with what was asked for.
            lock: a descriptor that holds the folder's lock. The supervisor gets a copy.
            is_wanted: return whether the job is still to be started; called just before that.

        Raises:
            CannotStart: with the reason.
            SpawnGivenUp: it is not wanted any more; it never runs.
            StartUnconfirmed: the supervisor has not answered in time; the program may run.
            LauncherFailed: there was no supervisor in time, or it ended without an answer.
            OSError: the zygote could not be asked.
        """
        answer, deadline = b"", time.monotonic() + _READY_SECONDS
        for _ in range(_ATTEMPTS):
            answer = await self._ask(folder, lock, is_wanted, deadline)
            if answer or folder.read_status() is not None:
                break
            # The zygote was killed with the request in its hands: nothing of it was executed, so it can be made again.
        if answer == STARTED or (not answer and _has_begun(folder)):  # its supervisor was killed: it is lost, not new
            return
        try:
            failure = decode_failure(answer)
        except ValueError:
            detail = (
                f"it answered {answer!r}" if answer else f"none was ready within {_READY_SECONDS:g} s, or it was killed"
            )
            raise LauncherFailed(folder.read_fault() or detail) from None
        raise failure

    async def _ask(self, folder: JobFolder, lock: int, is_wanted: Callable[[], bool], deadline: float) -> bytes:
        """Ask for a supervisor; return its answer, empty if it ended without one or none was ready by the deadline."""
        requesting = asyncio.ensure_future(self._request(folder, lock))
        try:
            while not (await asyncio.wait([requesting], timeout=_STUCK_SECONDS))[0]:
                self._kill_stuck_zygote()
                if time.monotonic() >= deadline:
                    return b""
        finally:
            if not requesting.done():  # its supervisor, if there ever is one, finds the socket closed and ends
                requesting.cancel()
                await asyncio.wait([requesting])
        reply, answer = requesting.result()
        with reply:
            if answer != READY:
                return answer
            self._last_ready = time.monotonic()
            if not is_wanted():
                raise SpawnGivenUp(folder.job_id)
            try:
                reply.send(GO)
            except BrokenPipeError:
                return b""
            return await _wait_started(folder, reply)

    async def _request(self, folder: JobFolder, lock: int) -> tuple[socket.socket, bytes]:
        """Ask the zygote for a supervisor, and wait for the first that is heard of it."""
        async with self._sending:  # the loop takes one waiter for a socket, and who waits holds no descriptor
            directory = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                reply, supervisors_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with contextlib.ExitStack() as undo:
                    undo.callback(reply.close)
                    with supervisors_end:
                        await self._send(folder.job_id, [directory, lock, supervisors_end.fileno()])
                    undo.pop_all()
            finally:
                os.close(directory)
        try:
            reply.setblocking(False)
            return reply, await _receive(reply)
        except BaseException:
            reply.close()
            raise

    def _kill_stuck_zygote(self) -> None:
        """Kill a zygote that has made no supervisor for a while although it was asked: it was stopped, say.

        Whoever waits for it finds that it has gone, and asks the next one.
        """
        if self._zygote is not None and time.monotonic() - self._last_ready >= _STUCK_SECONDS:
            log.warning("the zygote does not answer and is replaced", pid=self._zygote.pid, seconds=_STUCK_SECONDS)
            self._zygote.kill()

    async def _send(self, job_id: str, descriptors: list[int]) -> None:
        if self._zygote is None or self._zygote.poll() is not None:
            self._restart()
        try:
            await self._send_once(job_id, descriptors)
        except OSError as error:
            if error.errno not in _ENDED:
                raise
            self._restart()  # nothing of the request was taken
            await self._send_once(job_id, descriptors)

    async def _send_once(self, job_id: str, descriptors: list[int]) -> None:
        while True:
            if self._requests is None:
                raise LauncherFailed("the launcher is closed")
            try:
                socket.send_fds(self._requests, [job_id.encode()], descriptors)
            except BlockingIOError:  # the zygote has its hands full
                await _wait_writable(self._requests)
            else:
                return

    def _start(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setblocking(False)
        hidden = ["hidden"] if linux.is_memory_hidden() else []
        with theirs:
            self._zygote = subprocess.Popen(
                # -P: whatever lies in the directory that the daemon was started in is none of its modules.
                [sys.executable, "-P", "-m", "workerd.engine.zygote", str(theirs.fileno()), *hidden],
                stdin=subprocess.DEVNULL,
                env=environment.clean(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._last_ready = time.monotonic()  # it has not been asked before

    def _stop(self) -> None:
        """End the zygote, which it does by itself when its socket is closed; its supervisors live on."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._zygote is not None:
            if self._zygote.poll() is None:
                _wait_or_kill(self._zygote.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._zygote.wait(_STOP_SECONDS)
            self._unended = [each for each in (*self._unended, self._zygote) if each.poll() is None]
            self._zygote = None

    def _restart(self) -> None:
        self._stop()
        self._start()


async def _wait_started(folder: JobFolder, reply: socket.socket) -> bytes:
    """Wait for a supervisor's confirmation that the program runs, and continue a supervisor that its job has stopped.

    Raises:
        StartUnconfirmed: there is none in time.
    """
    receiving, deadline = asyncio.ensure_future(_receive(reply)), time.monotonic() + START_SECONDS
    try:
        while not (await asyncio.wait([receiving], timeout=min(_LOOK_SECONDS, START_SECONDS)))[0]:
            if time.monotonic() >= deadline:
                raise StartUnconfirmed(folder.job_id, START_SECONDS)
            with contextlib.suppress(SpoolCorrupt, FileNotFoundError):
                continue_supervisor(folder.read())
    finally:
        if not receiving.done():
            receiving.cancel()
            await asyncio.wait([receiving])
    return receiving.result()


def _wait_or_kill(pid: int) -> None:
    """Wait until a child that has been told to end does so, and end it if it was stopped, or starves."""
    with pidfd.hold(pid) as handle:
        if not pidfd.wait_ended(handle, _STOP_SECONDS):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


def _has_begun(folder: JobFolder) -> bool:
    """Return whether a job's program may have been executed, and nothing went wrong inside its supervisor."""
    journal = folder.read()
    return journal.status is not None and not journal.faults


async def _wait_writable(there: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(there, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(there)


async def _receive(there: socket.socket) -> bytes:
    """Receive one packet without blocking the loop; an empty one when the other side has gone."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(there, readable.set)
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                return there.recv(LONGEST)
            readable.clear()
            await readable.wait()
    except ConnectionResetError:
        return b""
    finally:
        loop.remove_reader(there)
