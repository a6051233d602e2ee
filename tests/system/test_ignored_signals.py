"""A signal that a command was started with as ignored stays ignored: nohup(1), and what a script runs with `&`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROGRAMS
from tests.daemon import Daemon

SCRIPT = "echo ready; cat {gate}; exit 5"


def ignoring(number: signal.Signals, command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a command as its starter would that ignores a signal."""
    prefix = [sys.executable, str(PROGRAMS / "unusual.py"), "--ignore", number.name, "--"]
    return subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def signal_twice_and_end(
    process: "subprocess.Popen[bytes]", number: signal.Signals, gate: Path
) -> tuple[bytes, bytes, int]:
    """Send a signal twice to a command that shows a job, end the job, and return output, errors and exit code."""
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first == b"ready\n"
    for _ in range(2):
        process.send_signal(number)
    gate.write_text("done\n")
    output, errors = process.communicate(timeout=60)
    return first + output, errors, process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_run_goes_on_to_the_end_of_its_job(shared_daemon: Daemon, tmp_path: Path, number: signal.Signals) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = shared_daemon.command("run", "--", "sh", "-c", SCRIPT.format(gate=gate))
    with ignoring(number, command) as run:
        assert signal_twice_and_end(run, number, gate) == (b"ready\ndone\n", b"", 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_stream_log_goes_on_to_the_end_of_its_job(
    shared_daemon: Daemon, tmp_path: Path, number: signal.Signals
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = shared_daemon.workerctl("spawn", "--", "sh", "-c", SCRIPT.format(gate=gate)).stdout.decode().strip()
    with ignoring(number, shared_daemon.command("stream-log", "--past-events", "--uuid", job_id)) as follower:
        assert signal_twice_and_end(follower, number, gate) == (b"ready\ndone\n", b"", 0)


def test_waiting_for_a_drain_goes_on_to_its_end(daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    assert daemon.workerctl("spawn", "--", "sh", "-c", SCRIPT.format(gate=gate)).returncode == 0
    command = [sys.executable, "-m", "workerd", "--drain", "--state-dir", str(daemon.state)]
    with ignoring(signal.SIGINT, command) as draining:
        assert draining.stderr is not None
        assert draining.stderr.readline() == b"workerd: waiting for 1 job left\n"
        draining.send_signal(signal.SIGINT)
        gate.write_text("done\n")
        assert draining.communicate(timeout=60) == (b"", b"workerd: no job is left; the daemon ends\n")
        assert draining.returncode == 0
    assert daemon.process is not None
    assert daemon.process.wait(60) == 0
    daemon.process = None
