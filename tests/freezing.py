"""Processes that no signal ends, as in an uninterruptible sleep: in a frozen cgroup (cgroup v1, freezer)."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until

_FREEZER = Path("/sys/fs/cgroup/freezer")


class Freezer:
    """A cgroup whose processes no signal ends while it is frozen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def freeze(self, *pids: int) -> None:
        """Freeze processes."""
        for pid in pids:
            (self._directory / "cgroup.procs").write_text(str(pid))
        state = self._directory / "freezer.state"
        state.write_text("FROZEN")
        wait_until(lambda: state.read_text() == "FROZEN\n", "the processes are not frozen")

    def thaw(self) -> None:
        """Thaw the processes, which then act on their signals."""
        (self._directory / "freezer.state").write_text("THAWED")

    def end(self) -> None:
        """Kill them."""
        self.thaw()
        processes = self._directory / "cgroup.procs"
        for pid in processes.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: not processes.read_text(), "frozen processes do not end once thawed")


@contextlib.contextmanager
def making_freezer() -> Iterator[Freezer]:
    """Make a cgroup that can be frozen; skip the test where that is not possible."""
    if os.geteuid() != 0 or not os.access(_FREEZER, os.W_OK):
        pytest.skip("needs root and a freezer of cgroup version 1")
    directory = _FREEZER / f"workerd-test-{os.getpid()}"
    directory.mkdir()
    freezer = Freezer(directory)
    try:
        yield freezer
    finally:
        freezer.end()
        directory.rmdir()
