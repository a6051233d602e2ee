"""The main job over a real socket, with real processes: run a program there, get its output here."""

import signal
import subprocess

from tests.daemon import Daemon


def test_run_passes_on_both_streams_and_the_exit_code(shared_daemon: Daemon) -> None:
    result = shared_daemon.workerctl("run", "--", "sh", "-c", "printf 'a\\0b'; printf err >&2; exit 3")
    assert (result.stdout, result.stderr, result.returncode) == (b"a\0b", b"err", 3)


def test_run_of_a_killed_program_exits_with_128_and_the_signal(shared_daemon: Daemon) -> None:
    assert shared_daemon.workerctl("run", "--", "sh", "-c", "kill -SEGV $$").returncode == 128 + signal.SIGSEGV


def test_interrupt_stops_the_job_and_exits_130(shared_daemon: Daemon) -> None:
    command = shared_daemon.command("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) == 130
