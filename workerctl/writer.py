"""Writing a job's output: bytes as they are, in a thread of their own."""

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import queue
import select
import threading
from types import TracebackType
from typing import Self

_MOST_OUTSTANDING = 1 << 22  # bytes
_NAMES = {1: "standard output", 2: "standard error"}
_SMALL_BYTES = 1 << 12  # what is cheaper to be put together than to be written by itself


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes as they are, without a buffer of our own.

    Raises:
        BrokenPipeError: whoever read them has gone, or the descriptor was closed from the beginning.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # somebody made it non-blocking: wait until it takes more
            writable = select.poll()
            writable.register(descriptor, select.POLLOUT)
            writable.poll()
        except OSError as error:
            if error.errno == errno.EBADF:
                raise BrokenPipeError(errno.EPIPE, "the output is closed") from error
            error.filename = _NAMES.get(descriptor)
            raise


@functools.cache
def is_open(descriptor: int) -> bool:
    """Return whether a descriptor could be written to when the program started."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY  # as `workerctl.__main__` fills it
    except OSError:
        return False


class Writer:
    """Writes in a thread of its own, so that a terminal or a pager that takes nothing stops nothing but the output.

    Ctrl-C must be heard meanwhile, and the daemon's PINGs be answered. An asynchronous context manager: it is left when
    everything is written, but for a cancellation, which waits for nothing. The thread is not waited for at the end of
    the program (`threading.Thread.daemon`): it may be stuck for ever.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[list[tuple[int, list[bytes]]]] = queue.SimpleQueue()
        self._collected: list[tuple[int, list[bytes]]] = []
        self._outstanding = 0  # bytes, collected and ordered
        self._progress = asyncio.Event()
        self._problem: OSError | None = None
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, name="writer", daemon=True).start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, asyncio.CancelledError | OSError):
            await self.flush()

    async def write(self, descriptor: int, data: bytes) -> None:
        """Write bytes as they are, soon: return at once, or when not too much is outstanding any more.

        Raises:
            OSError: as `write_all`, for what was to be written before.
        """
        if not self._collected:
            self._loop.call_soon(self._order)  # whatever comes before the loop's next turn goes together
        if len(data) < _SMALL_BYTES and self._collected and self._collected[-1][0] == descriptor:
            self._collected[-1][1].append(data)
        else:
            self._collected.append((descriptor, [data]))
        self._outstanding += len(data)
        await self._wait(_MOST_OUTSTANDING)

    async def flush(self) -> None:
        """Return when everything is written.

        Raises:
            OSError: as `write_all`.
        """
        await self._wait(0)

    async def _wait(self, most: int) -> None:
        while self._outstanding > most and self._problem is None:
            self._progress.clear()
            await self._progress.wait()
        if self._problem is not None:
            raise self._problem

    def _order(self) -> None:
        self._orders.put(self._collected)
        self._collected = []

    def _work(self) -> None:
        while True:
            order = self._orders.get()
            problem: OSError | None = None
            try:
                for descriptor, pieces in order:
                    write_all(descriptor, pieces[0] if len(pieces) == 1 else b"".join(pieces))
            except OSError as error:
                problem = error
            written = sum(len(piece) for _, pieces in order for piece in pieces)
            with contextlib.suppress(RuntimeError):  # the loop was left meanwhile
                self._loop.call_soon_threadsafe(self._settle, written, problem)
            if problem is not None:
                return

    def _settle(self, written: int, problem: OSError | None) -> None:
        self._outstanding -= written
        self._problem = problem
        self._progress.set()
