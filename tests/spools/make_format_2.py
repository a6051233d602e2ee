"""Make `format-2/jobs.tar.xz`: jobs of the last daemon of format 2, by that daemon itself.

    python -m tests.spools.make_format_2 ARCHIVE

As root, in a clone with its history. The archive that is checked in was made once and is kept: its times and process
ids are those of that day. All else comes out the same.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import msgspec
from worker_api.worker.v1 import SpawnRequest

from pki.store import PkiFolder
from tests.daemon import Daemon
from tests.older import FORMAT_2, check_out
from tests.waiting import wait_until
from workerctl.client import Client
from workerctl.events import Output
from workerd.engine.tree import descendants, parent_of

OWNER = ("acrimon", "11111111-1111-4111-8111-111111111111")
FRIEND = ("anna", "22222222-2222-4222-8222-222222222222")
MUCH = "seq -f %01023.0f 9000"
"""Some nine megabytes, of which a log of the smallest limit keeps less than half."""
WAIT = "echo ready >&2; exec sleep 1000"
INTERLEAVED = """for n in 0 1 2 3 4 5 6 7; do
printf 'out %d\\0\\377\\n' $n; sleep 0.05; printf 'err %d\\1\\376\\n' $n >&2; sleep 0.05
done"""
# Those that end under the daemon, and those that it leaves.
ENDING = {
    "interleaved": f"{INTERLEAVED}; exit 3",
    "silent": "exit 0",
    "killed": "echo out; echo err >&2; kill -KILL $$",
    "timed-out": f"echo out; {WAIT}",
    "stopped": WAIT,
    "shared": "echo shared",
    "released": f"{MUCH}; echo end >&2",
    "lost": f"echo out; {WAIT}",
    "lost-released": f"{MUCH}; {WAIT}",
    "fault": WAIT,
}
STAYING = {
    "untold": "echo before; echo ready >&2; sleep 1000 2>/dev/null; echo after; exit 4",
    "running": f"{INTERLEAVED}; {WAIT}",
    "running-released": f"{MUCH}; {WAIT}",
}
# Without a cgroup, whose name would be that of a place on this machine.
_NO_CGROUP = ("unshare", "--mount", "sh", "-c", 'umount --all --types cgroup2; exec "$@"', "sh")
_TAR = ("tar", "--sparse", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--xz")


async def spawn(client: Client, name: str, script: str) -> str:
    """Start a job, whose label and request key are its name."""
    return await client.spawn(
        SpawnRequest(
            program="/bin/sh",
            args=["-c", script],
            envs={"GREETING": "grüße"} if name == "interleaved" else {},
            working_directory="/",
            name=name,
            request_key=name,
            timeout=timedelta(seconds=1) if name == "timed-out" else None,
            max_log_bytes=(4 << 20) if MUCH in script else 0,
        )
    )


async def wait_ready(client: Client, job_id: str) -> None:
    """Wait until a job that waits has printed all that it prints."""
    async with contextlib.aclosing(client.stream_log(job_id)) as events:
        async for event in events:
            if isinstance(event, Output) and b"ready" in event.data:
                return


async def wait_ended(client: Client, job_id: str) -> None:
    """Wait until a job's log has its end."""
    async for _ in client.stream_log(job_id):
        pass


async def kill_supervisor(client: Client, job_id: str) -> None:
    """Lose a job, as when the kernel lacks memory."""
    supervisor = parent_of((await client.status(job_id)).pid)
    if supervisor is None:
        raise RuntimeError(f"the job {job_id} has no supervisor")
    os.kill(supervisor, signal.SIGKILL)


async def make_jobs(daemon: Daemon) -> dict[str, str]:
    """Start every job and bring each to where it is to be; return their ids by name."""
    async with daemon.client(FRIEND[0]) as friend:
        await friend.whoami()
    ids = {}
    async with daemon.client(OWNER[0]) as client:
        for name, script in (ENDING | STAYING).items():
            ids[name] = await spawn(client, name, script)
            if "ready" in script:
                await wait_ready(client, ids[name])
        await client.share(ids["shared"], FRIEND[0], ["status", "stream-log"])
        await client.share(ids["running"], FRIEND[0], ["stop"])
        for name in ("lost", "lost-released"):
            await kill_supervisor(client, ids[name])
        with open(daemon.state / "jobs" / ids["fault"] / "control", "wb") as control:
            control.write(b"no order\n")
        for name in ("stopped", "fault"):
            await client.stop(ids[name])
        for name in ENDING:
            await wait_ended(client, ids[name])
    return ids


def let_go(pid: int) -> None:
    """Let a job go on that waits for its one child to end."""
    [(child, _)] = descendants(pid)
    os.kill(child, signal.SIGKILL)


def main() -> None:
    """Make the archive."""
    archive = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as temporary:
        older = check_out(FORMAT_2, Path(temporary) / "tree")
        state = Path(temporary) / "state"
        pki = PkiFolder(state / "pki")
        pki.initialize()
        for name, user_id in (OWNER, FRIEND):
            pki.issue_client(name, user_id)
        daemon = Daemon(state, prefix=(*_NO_CGROUP, *older.prefix))
        daemon.start()
        try:
            ids = asyncio.run(make_jobs(daemon))
            for name in ENDING:
                told = state / "jobs" / ids[name] / "told"
                wait_until(told.exists, f"the end of {name} was not told")
            untold = state / "jobs" / ids["untold"]
            status = msgspec.json.decode((untold / "status").read_bytes())
            daemon.stop(signal.SIGKILL)
            let_go(status["pid"])
            with open(untold / "lock", "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # its supervisor has left
            subprocess.run([*_TAR, "-cf", archive, "-C", state, "jobs"], check=True)
        finally:
            daemon.close()


if __name__ == "__main__":
    main()
