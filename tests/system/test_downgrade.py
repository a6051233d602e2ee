"""A daemon of format 2 that is started on jobs of today's: it says clearly that it cannot know them, and harms none."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, JobEnd, SpawnRequest

from tests.daemon import Daemon, end_jobs
from tests.older import OlderCode
from tests.waiting import wait_until
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.events import Output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
ADMIN = "ada"
PRINT = "echo out; echo err >&2"
FORMAT = 3
REFUSAL = f"its format {FORMAT} is newer than this workerd knows: update workerd"


async def read(client: Client, job_id: str) -> tuple[list[bytes], JobEnd]:
    """Read the log of a job to its end: what it printed to each stream, and the end."""
    printed = {1: b"", 2: b""}
    async for event in client.stream_log(job_id):
        if isinstance(event, Output):
            printed[event.stream] += event.data
        elif isinstance(event, JobEnd):
            return [*printed.values()], event
    raise AssertionError("the log has no end")


# A stop and a removal, too, change nothing then.
CALLS: dict[str, Callable[[Client, str], Awaitable[object]]] = {
    "status": lambda client, job_id: client.status(job_id),
    "stream-log": read,
    "remove": lambda client, job_id: client.remove(job_id),
    "stop": lambda client, job_id: client.stop(job_id),
}


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every file of a folder, with what can be changed of it: inode, kind, mode, time of change, bytes.

    The older daemon takes the lock of what it would remove for its age, which makes one: it is empty and does no harm.
    """
    found: dict[str, tuple[object, ...]] = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        if (path.name, data) != ("lock", b""):
            found[str(path.relative_to(folder))] = (stat.st_ino, stat.st_mode, stat.st_mtime_ns, data)
    return found


async def check_refused(client: Client, ids: dict[str, str]) -> None:
    """Check that whatever is asked of any job is refused with the clear error."""
    for kind, job_id in ids.items():
        for name, call in CALLS.items():
            with pytest.raises(CallFailed, match=REFUSAL) as caught:
                await asyncio.wait_for(call(client, job_id), 20)
            failure = caught.value
            assert (kind, name, failure.status) == (kind, name, Status.DATA_LOSS)
            assert failure.reason is ErrorReason.JOB_UNREADABLE


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO that every job which runs waits for."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A daemon that is not running yet, with an administrator."""
    daemon = Daemon(tmp_path / "state", ("--roles.admin", ADMIN))
    daemon.pki.issue_client(ADMIN)
    return daemon


async def make_jobs(daemon: Daemon, gate: Path) -> dict[str, str]:
    """Start jobs of each kind; return their ids by what they are."""
    scripts = {
        "running, printed": f"{PRINT}; read line <{gate}; echo after; exit 3",
        "running, silent": f"read line <{gate}; exit 3",
        "ended, printed": f"{PRINT}; exit 3",
        "ended, silent": "exit 3",
    }
    async with daemon.client() as client:
        ids = {kind: await client.spawn(SpawnRequest(program="sh", args=["-c", it])) for kind, it in scripts.items()}
        for kind, job_id in ids.items():
            if kind.startswith("ended"):
                await read(client, job_id)
            elif "printed" in kind:
                await wait_printed(client, job_id)
    return ids


async def wait_printed(client: Client, job_id: str) -> None:
    """Wait until a job has printed to both streams."""
    seen = set()
    async for event in client.stream_log(job_id):
        assert isinstance(event, Output)
        seen.add(event.stream)
        if len(seen) == 2:
            return


@pytest.mark.parametrize("options", [(), ("--max-age-seconds", "0.1")], ids=["", "that removes old jobs"])
@pytest.mark.parametrize("has_catalog", [True, False], ids=["with the catalogue", "without it"])
async def test_an_older_daemon_refuses_jobs_of_today_and_changes_nothing_of_them(
    daemon: Daemon, older: OlderCode, gate: Path, options: tuple[str, ...], *, has_catalog: bool
) -> None:
    daemon.start()
    try:
        ids = await make_jobs(daemon, gate)
        await asyncio.to_thread(daemon.stop)
        folders = {job_id: daemon.state / "jobs" / job_id for job_id in ids.values()}
        if json.loads((folders[ids["running, printed"]] / "spec").read_bytes())["format"] < FORMAT:
            pytest.skip("today's daemon writes no newer format than the older one knows")
        if not has_catalog:
            for path in daemon.state.glob("catalog.*"):
                path.unlink()
        before = {job_id: snapshot(folder) for job_id, folder in folders.items()}
        daemon.prefix, today = older.prefix, daemon.options
        daemon.options += options
        daemon.start()
        async with daemon.client() as owner, daemon.client(ADMIN) as admin:
            own = await owner.spawn(SpawnRequest(program="sh", args=["-c", PRINT]))
            if not options:
                assert (await read(owner, own))[0] == [b"out\n", b"err\n"]
            for client in (owner, admin):
                await check_refused(client, ids)
            if options:
                wait_until(lambda: not (daemon.state / "jobs" / own).exists(), "the older daemon's own job stays")
            else:
                assert [job.id async for job in owner.list_jobs()] == [own]
        await asyncio.to_thread(daemon.stop)
        assert {job_id: snapshot(folder) for job_id, folder in folders.items()} == before
        daemon.prefix, daemon.options = (), today
        daemon.start()
        await check_served(daemon, gate, ids)
    finally:
        if daemon.process is not None:
            daemon.stop()
        end_jobs(daemon.state)


async def check_served(daemon: Daemon, gate: Path, ids: dict[str, str]) -> None:
    """Check that today's daemon has every job as if there had been no other."""
    async with daemon.client() as client:
        assert {job.id async for job in client.list_jobs()} >= {*ids.values()}
        await asyncio.to_thread(gate.write_text, "go\ngo\n")
        for kind, job_id in ids.items():
            out = (b"out\n" if "printed" in kind else b"") + (b"after\n" if kind == "running, printed" else b"")
            printed, end = await read(client, job_id)
            assert printed == [out, b"err\n" if "printed" in kind else b""]
            assert end.exited is not None and end.exited.code == 3
            await client.remove(job_id)
