"""What programs of the daemon's account, such as its jobs, can learn from its processes in /proc."""

import asyncio
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import Daemon, running_daemon
from tests.system.test_exhaustion import become, daemon_of, idle_account
from workerd.engine.tree import descendants, parent_of

PEEK = """
import pathlib, sys
for pid in sys.argv[1:]:
    for name in ("environ", "mem", "maps"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                file.read(1)
        except OSError:
            continue
        print(pid, name)
"""


@pytest.fixture(params=["1", "2"], ids=["one process", "several processes"])
def daemon(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon of an account that is not root."""
    monkeypatch.setenv("WORKERD_PROCESSES", request.param)
    monkeypatch.setattr("tests.daemon._DEBUGGABLE", {})
    if os.geteuid() == 0:
        with daemon_of(idle_account()) as daemon:
            yield daemon
    else:
        with running_daemon(tmp_path / "state") as daemon:
            yield daemon


async def look(daemon: Daemon, *processes: int) -> str:
    """Have a program of the daemon's account look into processes; return what it could read of which."""
    owner = daemon.state.stat().st_uid
    prefix = () if owner == os.geteuid() else become(pwd.getpwuid(owner))
    peek = [*prefix, sys.executable, "-c", PEEK, *map(str, processes)]
    seen = await asyncio.to_thread(subprocess.run, peek, capture_output=True, text=True, timeout=30, check=True)
    return seen.stdout


async def test_programs_of_its_account_cannot_look_into_its_processes(daemon: Daemon) -> None:
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="sleep", args=["1000"], working_directory="/"))
        job = (await client.status(job_id)).pid
    supervisor = parent_of(job)
    assert supervisor is not None
    ours = {daemon.pid, supervisor, *(pid for pid, _ in descendants(daemon.pid))} - {job}
    assert len(ours) >= 3
    assert {line.split()[0] for line in (await look(daemon, job, *ours)).splitlines()} == {str(job)}


async def test_a_daemon_that_is_set_to_be_debuggable_can_be_looked_into() -> None:
    account = idle_account()
    with daemon_of(account, options=("--debuggable",)) as daemon:
        assert f"{daemon.pid} environ" in await look(daemon, daemon.pid)
