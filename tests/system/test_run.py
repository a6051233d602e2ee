"""The main job over a real socket, with real processes: run a program there, get its output here."""

import os
import signal
import subprocess
from pathlib import Path

from tests.daemon import Daemon
from tests.waiting import wait_until


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


def test_an_interrupt_before_the_job_has_started_stops_it_too(daemon: Daemon) -> None:
    """The zygote is held up meanwhile, so that the daemon cannot answer."""
    assert daemon.workerctl("run", "--", "true").returncode == 0
    (zygote,) = map(int, Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split())
    os.kill(zygote, signal.SIGSTOP)

    def taken() -> bool:
        return any(b'"sleep"' in path.read_bytes() for path in (daemon.state / "jobs").glob("*/journal"))

    try:
        command = daemon.command("run", "--", "sleep", "1000")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            wait_until(taken, "the daemon took no spawn")
            run.send_signal(signal.SIGINT)
            assert run.stderr is not None
            assert b"as soon as the daemon has started it" in run.stderr.readline()
            os.kill(zygote, signal.SIGCONT)
            assert run.wait(timeout=30) == 130
    finally:
        os.kill(zygote, signal.SIGCONT)
    assert b"running" not in daemon.workerctl("list").stdout


def test_arguments_that_are_no_text_are_refused_in_one_line(shared_daemon: Daemon) -> None:
    bad = os.fsdecode(b"\xff")
    for arguments in (
        ("status", "--uuid", bad),
        ("run", "--", "echo", bad),
        ("--endpoint", "https://a..b:1", "whoami"),
    ):
        result = shared_daemon.workerctl(*arguments)
        assert result.returncode == 2, result.stderr
        assert result.stderr.count(b"\n") == 1
