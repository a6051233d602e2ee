"""Jobs and clients while the daemon goes away and comes back."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest
from worker_api.worker.v1 import ErrorReason, JobState, SpawnRequest, StreamLogRequest, WorkerServiceStub

from tests.daemon import Daemon
from tests.engine.logs import has_ended
from workerctl.errors import Unavailable
from workerctl.transport import WorkerChannel
from workerd.engine.tree import descendants, parent_of


def spawn(daemon: Daemon, script: str) -> str:
    result = daemon.workerctl("spawn", "--", "sh", "-c", script)
    assert result.returncode == 0, result.stderr
    return result.stdout.decode().strip()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_outlives_the_daemon_and_the_next_one_knows_it(
    daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = spawn(daemon, f"echo before; cat {gate}; echo after; exit 5")
    daemon.stop(number)
    gate.write_text("meanwhile\n")
    daemon.start()
    log = daemon.workerctl("stream-log", "--past-events", "--uuid", job_id)
    assert (log.stdout, log.stderr, log.returncode) == (b"before\nmeanwhile\nafter\n", b"", 0)
    status = daemon.workerctl("status", "--output", "json", "--uuid", job_id)
    assert b'"exited": {"code": 5}' in status.stdout


def test_the_restarted_daemon_stops_a_job_of_the_one_before(daemon: Daemon) -> None:
    job_id = spawn(daemon, "exec sleep 1000")
    daemon.stop(signal.SIGKILL)
    daemon.start()
    stop = daemon.workerctl("stop", "--grace-seconds", "0", "--uuid", job_id)
    assert stop.returncode == 0, stop.stderr
    assert daemon.workerctl("stream-log", "--past-events", "--uuid", job_id).returncode == 0


async def test_sigterm_ends_streams_with_unavailable_and_leaves_jobs_running(any_daemon: Daemon) -> None:
    streaming = asyncio.Event()

    async def follow(channel: WorkerChannel) -> None:
        request = StreamLogRequest(job_id=job_id, follow=True)
        async for _ in WorkerServiceStub(channel).stream_log(request):
            streaming.set()

    async with any_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
        pid = (await client.status(job_id)).pid
        follower = asyncio.create_task(client.call(follow))
        await streaming.wait()
        processes = [child for child, _ in descendants(any_daemon.pid) if parent_of(child) == any_daemon.pid]
        assert await asyncio.to_thread(any_daemon.stop) == 0
        with pytest.raises(Unavailable) as caught:
            await follower
        assert caught.value.reason is ErrorReason.SHUTTING_DOWN
    assert all(has_ended(process) for process in processes)
    assert not has_ended(pid)
    assert "is replaced" not in any_daemon.errors()
    assert not (any_daemon.state / "endpoint").exists()
    any_daemon.start()
    async with any_daemon.client() as client:
        job = await client.status(job_id)
        assert (job.state, job.pid) == (JobState.RUNNING, pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_follower_goes_through_a_restart_without_loss_or_doubling(
    any_daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    """The daemon ends while workerctl follows, and comes back on the same port."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = spawn(any_daemon, f"echo before; cat {gate}; echo after")
    command = any_daemon.command("stream-log", "--past-events", "--uuid", job_id)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"before\n"
        any_daemon.listen = f"127.0.0.1:{any_daemon.port}"
        any_daemon.stop(number)
        gate.write_text("meanwhile\n")
        any_daemon.start()
        rest, errors = follower.communicate(timeout=60)
    assert rest == b"meanwhile\nafter\n"
    assert b"trying again from byte 7" in errors
    assert follower.returncode == 0


def test_a_job_whose_supervisor_is_killed_is_lost_and_run_says_so(any_daemon: Daemon) -> None:
    command = any_daemon.command("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        (job,) = (any_daemon.state / "jobs").iterdir()
        status = any_daemon.folder(job.name).read_status()
        assert status is not None
        supervisor = parent_of(status.pid)
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == 122
    assert b"lost" in errors


def test_a_second_daemon_on_the_same_state_is_refused_in_one_line(daemon: Daemon) -> None:
    other = Daemon(daemon.state)
    with pytest.raises(AssertionError, match=r"ended with 1: (?s:.*)another workerd"):
        other.start()
    assert "Traceback" not in other.errors()
