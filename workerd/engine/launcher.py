"""Starting supervisors: the engine's side of the zygote."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from typing import Self

from workerd.engine import pidfd
from workerd.engine.errors import LauncherFailed
from workerd.engine.folder import JobFolder
from workerd.engine.reply import STARTED, decode_failure

_ATTEMPTS = 3
_ENDED = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED)  # of a send: nobody is there any more
_STOP_SECONDS = 1.0


class Launcher:
    """Keeps a zygote running and asks it for supervisors."""

    def __init__(self) -> None:
        self._zygote: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._sending = asyncio.Lock()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def launch(self, folder: JobFolder, lock: int) -> None:
        """Start a supervisor for the job in a folder, and wait until its program runs.

        Args:
            folder: the job's, with what was asked for.
            lock: a descriptor that holds the folder's lock. The supervisor gets a copy.

        Raises:
            CannotStart: with the reason.
            LauncherFailed: the supervisor ended without an answer.
            OSError: the zygote could not be asked.
        """
        answer = b""
        for _ in range(_ATTEMPTS):
            answer = await self._ask(folder, lock)
            if answer or folder.read_status() is not None:
                break
            # The zygote was killed with the request in its hands: nothing of it was executed, so it can be made again.
        if answer == STARTED:
            return
        try:
            failure = decode_failure(answer)
        except ValueError:
            raise LauncherFailed(folder.read_fault() or f"it answered {answer!r}") from None
        raise failure

    async def _ask(self, folder: JobFolder, lock: int) -> bytes:
        async with self._sending:  # the loop takes one waiter for a socket, and who waits holds no descriptor
            directory = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                reply, supervisors_end = os.pipe()
                try:
                    await self._send(folder.job_id, [directory, lock, supervisors_end])
                except BaseException:
                    os.close(reply)
                    raise
                finally:
                    os.close(supervisors_end)
            finally:
                os.close(directory)
        return await read_to_end(reply)

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
        with theirs:
            self._zygote = subprocess.Popen(
                # -P: whatever lies in the directory that the daemon was started in is none of its modules.
                [sys.executable, "-P", "-m", "workerd.engine.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def _stop(self) -> None:
        """End the zygote, which it does by itself when its socket is closed; its supervisors live on."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._zygote is not None:
            if self._zygote.poll() is None:
                _wait_or_kill(self._zygote.pid)
            self._zygote.wait()
            self._zygote = None

    def _restart(self) -> None:
        self._stop()
        self._start()


def _wait_or_kill(pid: int) -> None:
    """Wait until a child that has been told to end does so, and end it if it was stopped, or starves."""
    with pidfd.hold(pid) as handle:
        if not pidfd.wait_ended(handle, _STOP_SECONDS):
            signal.pidfd_send_signal(handle, signal.SIGKILL)


async def _wait_writable(there: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(there, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(there)


async def read_to_end(descriptor: int) -> bytes:
    """Read a pipe to its end of file without blocking the loop, and close it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    data = bytearray()

    def receive() -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(descriptor, 4096)
            data.extend(chunk)
            if not chunk and not done.done():
                done.set_result(None)

    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, receive)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return bytes(data)
