"""Draining: no new jobs, those that run go on, and the daemon ends with the last."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from worker_api.worker.v1 import ErrorReason, JobState, SpawnRequest

from tests.daemon import Daemon
from tests.locks import held_by_another
from tests.waiting import wait_until
from workerctl.errors import Draining
from workerd import drain as draining_from_outside
from workerd.errors import DrainFailed


def drain(state: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "workerd", "--drain", "--state-dir", str(state)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def next_line(draining: "subprocess.Popen[str]") -> str:
    assert draining.stderr is not None
    return draining.stderr.readline()


def wait_code(daemon: Daemon) -> int:
    assert daemon.process is not None
    code = daemon.process.wait(60)
    daemon.process = None
    return code


def spawn_waiting(daemon: Daemon, gate: Path) -> str:
    """Start a job that waits until something is written into a FIFO."""
    os.mkfifo(gate)
    result = daemon.workerctl("spawn", "--", "sh", "-c", f"echo before; cat {gate}; echo after")
    assert result.returncode == 0, result.stderr
    return result.stdout.decode().strip()


async def test_a_drained_daemon_takes_no_jobs_serves_those_it_has_and_ends_with_the_last(
    any_daemon: Daemon, tmp_path: Path
) -> None:
    job_id = spawn_waiting(any_daemon, tmp_path / "gate")
    async with any_daemon.client() as client:
        other = await client.spawn(SpawnRequest(program="sleep", args=["1000"], request_key="k"))
    follow = any_daemon.command("stream-log", "--past-events", "--uuid", job_id)
    with (
        subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower,
        drain(any_daemon.state) as draining,
    ):
        assert next_line(draining) == "workerd: waiting for 2 jobs left\n"
        for _ in range(4):  # connections, so with every process
            async with any_daemon.client() as client:
                with pytest.raises(Draining, match="drained") as caught:
                    await client.spawn(SpawnRequest(program="true"))
                assert caught.value.reason is ErrorReason.DRAINING
                assert await client.spawn(SpawnRequest(program="true", request_key="k")) == other
                assert {job.id async for job in client.list_jobs()} == {job_id, other}
                assert (await client.status(job_id)).state is JobState.RUNNING
        assert len(list((any_daemon.state / "jobs").iterdir())) == 2
        async with any_daemon.client() as client:
            await client.stop(other)
        assert next_line(draining) == "workerd: waiting for 1 job left\n"
        (tmp_path / "gate").write_text("meanwhile\n")
        output, errors = await asyncio.to_thread(follower.communicate, timeout=60)
        assert (output, errors, follower.returncode) == (b"before\nmeanwhile\nafter\n", b"", 0)
        assert next_line(draining) == "workerd: no job is left; the daemon ends\n"
        assert draining.wait(60) == 0
    assert wait_code(any_daemon) == 0
    any_daemon.start()
    assert any_daemon.workerctl("run", "--", "echo", "again").stdout == b"again\n"


def test_a_daemon_without_jobs_is_drained_at_once(any_daemon: Daemon) -> None:
    with drain(any_daemon.state) as draining:
        assert draining.wait(60) == 0
    assert wait_code(any_daemon) == 0


def test_interrupting_the_wait_leaves_the_daemon_draining(any_daemon: Daemon, tmp_path: Path) -> None:
    spawn_waiting(any_daemon, tmp_path / "gate")
    with drain(any_daemon.state) as draining:
        assert next_line(draining) == "workerd: waiting for 1 job left\n"
        draining.send_signal(signal.SIGINT)
        _, errors = draining.communicate(timeout=60)
    assert draining.returncode == 130
    assert errors.startswith("workerd: the daemon goes on draining: `workerd --drain --state-dir ")
    assert errors.count("\n") == 1
    assert b"drained" in any_daemon.workerctl("spawn", "--", "true").stderr
    with drain(any_daemon.state) as draining:
        assert next_line(draining) == "workerd: waiting for 1 job left\n"
        (tmp_path / "gate").write_text("")
        assert draining.wait(60) == 0
    assert wait_code(any_daemon) == 0


def test_a_drain_that_is_called_off_leaves_the_daemon_as_it_was(any_daemon: Daemon, tmp_path: Path) -> None:
    spawn_waiting(any_daemon, tmp_path / "gate")
    with drain(any_daemon.state) as draining:
        next_line(draining)
        draining.send_signal(signal.SIGINT)
    (any_daemon.state / "drain").unlink()
    assert any_daemon.workerctl("run", "--", "echo", "again").stdout == b"again\n"
    (tmp_path / "gate").write_text("")
    assert any_daemon.workerctl("run", "--", "echo", "still").stdout == b"still\n"


def test_waiting_for_a_drain_ends_at_once_when_it_is_called_off(any_daemon: Daemon, tmp_path: Path) -> None:
    spawn_waiting(any_daemon, tmp_path / "gate")
    with drain(any_daemon.state) as draining:
        next_line(draining)
        (any_daemon.state / "drain").unlink()
        _, errors = draining.communicate(timeout=10)
    assert draining.returncode == 1
    assert errors == "workerd: the daemon goes on: the drain was called off with 1 job left\n"
    assert any_daemon.workerctl("run", "--", "echo", "again").stdout == b"again\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_drain_whose_daemon_ends_before_its_jobs_fails_and_the_next_daemon_takes_jobs(
    any_daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    job_id = spawn_waiting(any_daemon, tmp_path / "gate")
    with drain(any_daemon.state) as draining:
        next_line(draining)
        any_daemon.stop(number)
        _, errors = draining.communicate(timeout=60)
    assert draining.returncode == 1
    assert errors == "workerd: the daemon ended with 1 job left\n"
    any_daemon.start()
    assert any_daemon.workerctl("run", "--", "echo", "again").stdout == b"again\n"
    (tmp_path / "gate").write_text("")
    log = any_daemon.workerctl("stream-log", "--past-events", "--uuid", job_id)
    assert log.stdout == b"before\nafter\n"


@pytest.mark.parametrize("name", ["never", "state"])
def test_where_no_daemon_runs_there_is_nothing_to_drain(tmp_path: Path, name: str) -> None:
    daemon = Daemon(tmp_path / "state")
    daemon.start()
    daemon.close()
    with drain(tmp_path / name) as draining:
        output, errors = draining.communicate(timeout=60)
    assert (draining.returncode, output) == (1, "")
    assert errors == f"workerd: no workerd serves the state directory {tmp_path / name}\n"
    assert not (tmp_path / name / "drain").exists()


def test_a_daemon_that_does_not_end_though_no_job_is_left_is_told_with_what_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process stands in for the daemon, and is stopped after it has reported that no job is left."""
    monkeypatch.setattr(draining_from_outside, "_DRAINED_SECONDS", 0.2)
    tmp_path.chmod(0o700)
    marker = tmp_path / "drain"

    def say_that_no_job_is_left() -> None:
        wait_until(marker.exists, "nobody asked for a drain")
        marker.write_text("0")
        marker.unlink()

    with held_by_another(tmp_path / "lock", stopped=True) as holder:
        (tmp_path / "lock").write_text(str(holder))
        saying = threading.Thread(target=say_that_no_job_is_left)
        saying.start()
        with pytest.raises(DrainFailed, match=rf"has not ended within 0\.2 s: `kill -9 {holder}` ends it"):
            draining_from_outside.drain(tmp_path)
        saying.join(60)
