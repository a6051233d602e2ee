"""Other processes: finding, signalling and pausing them by pidfd, so that no recycled id is ever hit."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from workerd.engine.tree import descendants, parent_of

_LOOK_SECONDS = 0.02
_STATE = 0  # the first field of proc_pid_stat(5) after the name


class Process:
    """A process that is signalled only as long as it is the one that was found.

    Raises:
        ProcessLookupError: it has gone, or its id belongs to a child of somebody else by now.
    """

    def __init__(self, pid: int, *, parent: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)
        if parent_of(pid) != parent:
            self.close()
            raise ProcessLookupError(pid)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._handle)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    async def stop_now(self) -> None:
        """Stop it and wait until it has stopped, or ended."""
        self.signal(signal.SIGSTOP)
        await wait_until(lambda: self._state() in "TZX", f"process {self.pid} to stop", 10)

    def _state(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[_STATE]
        except (FileNotFoundError, ProcessLookupError):
            return "X"


class Pauses:
    """Stops processes for a while. Whatever is stopped goes on in the end."""

    def __init__(self) -> None:
        self._running: dict[int, asyncio.Task[None]] = {}

    def pause(self, process: Process, seconds: float) -> bool:
        """Stop a process and let it go on later; return whether it was not paused already. Takes the process over."""
        if process.pid in self._running:
            process.close()
            return False
        process.signal(signal.SIGSTOP)
        task = asyncio.create_task(self._go_on(process, seconds))
        self._running[process.pid] = task
        task.add_done_callback(lambda _: self._running.pop(process.pid))
        return True

    def is_paused(self, pid: int) -> bool:
        """Tell whether a process is in a pause."""
        return pid in self._running

    async def end(self) -> None:
        """Let everything go on now."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _go_on(self, process: Process, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            process.signal(signal.SIGCONT)
            process.close()


async def wait_until(condition: Callable[[], bool], what: str, limit_seconds: float) -> None:
    """Wait for something that nobody tells us of.

    Raises:
        TimeoutError: it did not come; the message says what was waited for.
    """
    try:
        async with asyncio.timeout(limit_seconds):
            while not condition():
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"waited {limit_seconds} s for {what}") from None


def find_child(pid: int, name: str) -> list[Process]:
    """Find the processes of a name (proc_pid_comm(5)) anywhere below one."""
    found = []
    for child, parent in list(descendants(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.append(Process(child, parent=parent))
    return found


def find_parent(pid: int, name: str) -> Process | None:
    """Find a process's parent, if it has the name."""
    parent = parent_of(pid)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        grandparent = None if parent is None else parent_of(parent)
        if parent is None or grandparent is None or Path(f"/proc/{parent}/comm").read_text().strip() != name:
            return None
        process = Process(parent, parent=grandparent)
        if parent_of(pid) == parent:
            return process
        process.close()
    return None


def processes_of_jobs(job_ids: Collection[str]) -> Iterator[tuple[int, str]]:
    """Find all processes that run with the environment of one of these jobs (environ(7), proc_pid_environ(5)).

    Yields:
        Each one's id, and its job's.
    """
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            for variable in Path(entry.path, "environ").read_bytes().split(b"\0"):
                name, _, value = variable.partition(b"=")
                if name == b"WORKERD_JOB_ID" and value.decode() in job_ids:
                    yield int(entry.name), value.decode()
