"""A daemon whose files may not grow beyond a limit (RLIMIT_FSIZE): what it keeps is whole, and the reason is told."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import JobEnd, JobState, SpawnRequest, Stream

from tests.conftest import PROGRAMS
from tests.daemon import Daemon, running_daemon
from tests.waiting import eventually
from workerctl.client import Client
from workerctl.events import Output
from workerctl.exit_codes import ExitCode
from workerctl.log import LogCheck
from workerd.engine.storage import MIN_LOG_BYTES

LIMIT_BYTES = MIN_LOG_BYTES
REASON = f"a file of the daemon may have {LIMIT_BYTES} bytes and no more (RLIMIT_FSIZE)"
# Ignores SIGPIPE and goes on when nobody reads any more; each line says where in the output it stands.
COUNT = LIMIT_BYTES // 10
STUBBORN = f"""
COUNT = {COUNT}
import os, signal, sys, time
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
try:
    for number in range(COUNT):
        os.write(1, b"%15d\\n" % number)
except BrokenPipeError:
    pass
open(sys.argv[1], "w").close()
while not os.path.exists(sys.argv[2]):
    time.sleep(0.01)
sys.exit(7)
"""


def limited(limit_bytes: int) -> tuple[str, ...]:
    """The prefix of a program whose files may not grow beyond a size."""
    limit = f"FSIZE={limit_bytes}:{limit_bytes}"
    return (sys.executable, str(PROGRAMS / "unusual.py"), "--limit", limit, "--")


@pytest.fixture
def limited_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that may not write beyond LIMIT_BYTES of any file."""
    with running_daemon(tmp_path / "state", prefix=limited(LIMIT_BYTES)) as daemon:
        yield daemon


async def read_checked(client: Client, job_id: str) -> tuple[bytes, JobEnd]:
    """Read a log to its end, with all that workerctl checks."""
    received, check = bytearray(), LogCheck([Stream.STDOUT, Stream.STDERR], from_start=True)
    async for event in client.stream_log(job_id):
        if isinstance(event, Output):
            check.output(event)
            received += event.data
        elif isinstance(event, JobEnd):
            check.end(event)
            return bytes(received), event
    raise AssertionError("the log stopped before its end")


async def test_a_log_that_may_not_grow_ends_with_its_reason_and_the_job_goes_on(
    limited_daemon: Daemon, tmp_path: Path
) -> None:
    noticed, gate = tmp_path / "noticed", tmp_path / "gate"
    async with limited_daemon.client() as client, limited_daemon.client() as other:
        args = ["-c", STUBBORN, str(noticed), str(gate)]
        job_id = await client.spawn(SpawnRequest(program=sys.executable, args=args))
        following = asyncio.create_task(read_checked(other, job_id))

        async def told() -> bool:
            return bool((await client.status(job_id)).log_ended_early) and noticed.exists()

        await eventually(told)
        job = await client.status(job_id)
        assert (job.state, job.waits_for_room) == (JobState.RUNNING, False)
        assert REASON in job.log_ended_early
        assert f"at byte {job.stdout_bytes}:" in job.log_ended_early
        gate.touch()
        printed = b"".join(b"%15d\n" % number for number in range(COUNT))
        for received, end in (await asyncio.wait_for(following, 30), await read_checked(client, job_id)):
            assert 0 < len(received) == job.stdout_bytes <= LIMIT_BYTES
            assert received == printed[: len(received)]
            assert end.exited is not None and end.exited.code == 7
            assert end.log_ended_early == job.log_ended_early
        [job] = [each async for each in client.list_jobs()]
        assert job.log_ended_early == end.log_ended_early
        assert not limited_daemon.folder(job_id).is_locked()


async def test_a_log_of_few_long_writes_holds_as_much_as_its_file_may(limited_daemon: Daemon) -> None:
    async with limited_daemon.client() as client:
        args = ["-c", "import sys; sys.stdout.buffer.write(bytes(5_000_000))"]
        received, end = await read_checked(client, await client.spawn(SpawnRequest(program=sys.executable, args=args)))
    assert received == bytes(LIMIT_BYTES)
    assert f"at byte {LIMIT_BYTES}:" in end.log_ended_early


async def test_a_job_whose_log_has_ended_can_be_stopped_at_once(limited_daemon: Daemon, tmp_path: Path) -> None:
    args = ["-c", STUBBORN, str(tmp_path / "noticed"), str(tmp_path / "never")]
    async with limited_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program=sys.executable, args=args))

        async def noticed() -> bool:
            return (tmp_path / "noticed").exists()

        await eventually(noticed)
        await client.stop(job_id)
        _, end = await asyncio.wait_for(read_checked(client, job_id), 30)
    assert end.stopped is not None
    assert REASON in end.log_ended_early


@pytest.mark.parametrize(
    ("script", "how"), [("exec yes", "killed by signal 13"), ("yes; exit 0", "exited with code 0")]
)
def test_commands_show_why_a_log_ended_early_and_exit_with_121(limited_daemon: Daemon, script: str, how: str) -> None:
    """However the program itself ended."""
    ran = limited_daemon.workerctl("run", "--", "sh", "-c", script)
    reason = f"the log ended at byte {len(ran.stdout)}: {REASON}"
    assert (ran.returncode, ran.stderr.decode()) == (
        ExitCode.LOG_DAMAGED,
        f"workerctl: {reason}\nworkerctl: job {how}\n",
    )
    job_id = json.loads(limited_daemon.workerctl("list", "--output", "json", "--limit", "1").stdout)["id"]
    shown = limited_daemon.workerctl("stream-log", "--past-events", "--uuid", job_id)
    assert (shown.returncode, shown.stdout, shown.stderr.decode()) == (
        ExitCode.LOG_DAMAGED,
        ran.stdout,
        f"workerctl: {reason}\n",
    )
    assert f"incomplete: {reason}\n" in limited_daemon.workerctl("status", "--uuid", job_id).stdout.decode()


def test_a_daemon_whose_files_may_not_be_as_long_as_the_shortest_log_says_so_and_ends(tmp_path: Path) -> None:
    result = subprocess.run(
        [*limited(LIMIT_BYTES - 1), sys.executable, "-m", "workerd", "--state-dir", str(tmp_path)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (1, b"", 1)
    assert result.stderr.startswith(b"workerd: a file of the daemon may have %d bytes " % (LIMIT_BYTES - 1))
    assert b"RLIMIT_FSIZE" in result.stderr and b"raise the hard limit" in result.stderr
