"""A job whose process does not come to execute its program, as when another program of its account stops it."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.logs import ME, read_log
from tests.waiting import LIMIT_SECONDS, eventually
from workerd.engine import program, tree
from workerd.engine.control import Control
from workerd.engine.engine import Engine
from workerd.engine.errors import CannotStart
from workerd.engine.folder import JobFolder
from workerd.engine.job import Killed, Stopped
from workerd.engine.request import SpawnRequest
from workerd.engine.storage import DEFAULT_STORAGE


@pytest.fixture
def held_program(tmp_path: Path) -> Iterator[Path]:
    """A program that cannot be executed at once: that waits for a lease (fcntl(2), "Leases", for 45 s by default)."""
    path = tmp_path / "program"
    shutil.copy("/bin/sleep", path)
    handler = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the holder of a lease is asked to give it up
    lease = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield path
    finally:
        os.close(lease)
        signal.signal(signal.SIGIO, handler)


@pytest.mark.parametrize("grace_seconds", [0.0, 1000.0])
async def test_a_job_that_does_not_come_to_be_executed_can_be_stopped(
    engine: Engine, held_program: Path, grace_seconds: float
) -> None:
    request = SpawnRequest(owner=ME, program=str(held_program), args=("1000",), working_directory="/")
    spawning = asyncio.create_task(engine.spawn(request))

    async def is_supervised() -> bool:
        return any(JobFolder(path).read().supervisor is not None for path in engine._shelf.jobs.glob("*"))

    await eventually(is_supervised)
    [path] = engine._shelf.jobs.iterdir()
    async with asyncio.timeout(20):  # the lease holds the program up for longer
        await engine.stop(path.name, ME, grace_seconds)
        assert await spawning == path.name
        log = await read_log(engine, path.name)
    sent = signal.SIGTERM if grace_seconds else signal.SIGKILL
    assert log.end is not None
    assert log.end.cause == Stopped(ME, sent, Killed(sent))
    assert log.end.peak_memory_bytes == 0  # no program has used any


def test_a_program_that_is_not_executed_in_time_is_a_refusal_and_leaves_no_process(
    tmp_path: Path, held_program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_EXECUTE_SECONDS", 0.3)
    request = SpawnRequest(owner=ME, program=str(held_program), args=("1000",), working_directory="/")
    spec = request.specify("11111111-1111-4111-8111-111111111111", 1, DEFAULT_STORAGE)
    control = Control(JobFolder(tmp_path), lambda _: None)
    children, began = set(tree.descendants(os.getpid())), time.monotonic()
    with contextlib.closing(control), open(os.devnull, "wb") as null:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(CannotStart, match=r"it was not executed within 0\.3 s"):
            program.start(spec, "mark", control, stdout=null.fileno(), stderr=null.fileno(), cgroup_directory=None)
        assert os.listdir("/proc/self/fd") == before
    assert time.monotonic() - began < LIMIT_SECONDS / 2
    assert set(tree.descendants(os.getpid())) <= children
