"""Starting supervisors: the engine's side of the zygote."""

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Self

from workerd.engine.errors import LauncherFailed
from workerd.engine.folder import JobFolder
from workerd.engine.reply import STARTED, decode_failure


class Launcher:
    """Keeps a zygote running and asks it for supervisors."""

    def __init__(self) -> None:
        self._zygote: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        # What jobs may have open, whatever the daemon allows itself later.
        self._descriptor_limit = resource.getrlimit(resource.RLIMIT_NOFILE)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def launch(self, folder: Path, lock: int) -> None:
        """Have a supervisor start the job in a folder, and wait until its program runs.

        Args:
            folder: the job's folder, with its spec.
            lock: a descriptor that holds the folder's lock. The supervisor gets a copy.

        Raises:
            CannotStart: with the reason.
            LauncherFailed: the supervisor ended without an answer.
        """
        answer = await self._ask(folder, lock)
        if not answer and JobFolder(folder).read_status() is None:
            # The zygote was killed with the request in its hands: nothing of it was executed, so it can be made again.
            answer = await self._ask(folder, lock)
        if answer == STARTED:
            return
        try:
            failure = decode_failure(answer)
        except ValueError:
            raise LauncherFailed(JobFolder(folder).read_fault() or f"it answered {answer!r}") from None
        raise failure

    async def _ask(self, folder: Path, lock: int) -> bytes:
        reply, supervisors_end = os.pipe()
        try:
            self._send(folder, lock, supervisors_end)
        except BaseException:
            os.close(reply)
            raise
        finally:
            os.close(supervisors_end)
        return await _read_to_end(reply)

    def _send(self, folder: Path, lock: int, reply: int) -> None:
        if self._zygote is None or self._zygote.poll() is not None:
            self._restart()
        try:
            self._send_once(folder, lock, reply)
        except OSError:  # it ended meanwhile: nothing of the request was taken
            self._restart()
            self._send_once(folder, lock, reply)

    def _send_once(self, folder: Path, lock: int, reply: int) -> None:
        if self._requests is None:
            raise LauncherFailed("the launcher is closed")
        socket.send_fds(self._requests, [os.fsencode(folder)], [lock, reply])

    def _start(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._zygote = subprocess.Popen(
                # -P: whatever lies in the directory that the daemon was started in is none of its modules.
                [sys.executable, "-P", "-m", "workerd.engine.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        resource.prlimit(self._zygote.pid, resource.RLIMIT_NOFILE, self._descriptor_limit)

    def _stop(self) -> None:
        """End the zygote, which it does by itself when its socket is closed; its supervisors live on."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._zygote is not None:
            self._zygote.wait()
            self._zygote = None

    def _restart(self) -> None:
        self._stop()
        self._start()


async def _read_to_end(descriptor: int) -> bytes:
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
