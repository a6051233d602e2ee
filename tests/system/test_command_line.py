"""What workerctl says and exits with when not all is as usual: closed descriptors, signals, mistakes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.commands import run_workerctl
from tests.daemon import Daemon
from workerctl.exit_codes import ExitCode


def redirected(daemon: Daemon, redirection: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run workerctl with one of the shell's redirections."""
    command = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *daemon.command(*arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


def started_job(daemon: Daemon, text: bytes) -> str:
    """Find the id in a text, and see that there is such a job."""
    found = re.search(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
    assert found is not None, text
    job_id = found[0].decode()
    assert daemon.workerctl("status", job_id).returncode == 0
    return job_id


@pytest.mark.parametrize("command", [("spawn",), ("run", "--detach")], ids=" ".join)
@pytest.mark.parametrize(("redirection", "code"), [(">&-", ExitCode.OUTPUT_CLOSED), (">/dev/full", ExitCode.FAILED)])
def test_a_started_job_is_told_even_if_the_output_cannot_be_written(
    shared_daemon: Daemon, command: tuple[str, ...], redirection: str, code: ExitCode
) -> None:
    result = redirected(shared_daemon, redirection, *command, "--", "true")
    assert result.returncode == code, result.stderr
    started_job(shared_daemon, result.stderr)
    assert b"Traceback" not in result.stderr
    assert (b"standard output: No space left on device" in result.stderr) == (code is ExitCode.FAILED)


@pytest.mark.parametrize("arguments", [("list",), ("whoami",)], ids=" ".join)
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_an_output_that_cannot_be_written_is_one_line_at_most(
    shared_daemon: Daemon, arguments: tuple[str, ...], redirection: str
) -> None:
    result = redirected(shared_daemon, redirection, *arguments)
    assert result.returncode in (ExitCode.OUTPUT_CLOSED, ExitCode.FAILED)
    assert result.stderr.count(b"\n") <= 1


def test_a_run_without_standard_output_ends_as_one_that_nobody_reads(shared_daemon: Daemon) -> None:
    result = redirected(shared_daemon, ">&-", "run", "--", "echo", "hello")
    assert result.returncode == ExitCode.OUTPUT_CLOSED
    job_id = started_job(shared_daemon, result.stderr)
    [said] = re.findall(r"go on with: workerctl (.*)\n", result.stderr.decode())
    assert said.endswith(f" stream-log --past-events --uuid {job_id}")
    go_on = [sys.executable, "-m", "workerctl", *shlex.split(said)]
    assert subprocess.run(go_on, capture_output=True, timeout=60, check=False).stdout == b"hello\n"


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_lost_warnings_change_nothing(shared_daemon: Daemon, redirection: str) -> None:
    """This command has one to tell: that the job was killed."""
    result = redirected(shared_daemon, redirection, "run", "--", "sh", "-c", "echo out; kill -KILL $$")
    assert (result.returncode, result.stdout, result.stderr) == (128 + signal.SIGKILL, b"out\n", b"")


def test_a_closed_standard_error_loses_what_is_printed_there_and_nothing_else(shared_daemon: Daemon) -> None:
    result = redirected(shared_daemon, "2>&-", "run", "--", "sh", "-c", "echo err >&2; echo out; exit 3")
    assert (result.returncode, result.stdout, result.stderr) == (3, b"out\n", b"")


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("run", "--", "echo", "hello"), "go on with: workerctl "),
        (("run", "--detach", "--", "true"), "job "),
        (("spawn", "--", "true"), "job "),
    ],
    ids=["run", "run --detach", "spawn"],
)
def test_the_reason_is_told_before_what_to_do(shared_daemon: Daemon, arguments: tuple[str, ...], advice: str) -> None:
    result = redirected(shared_daemon, ">/dev/full", *arguments)
    first, second = result.stderr.decode().splitlines()
    assert (result.returncode, first) == (
        ExitCode.FAILED,
        "workerctl: standard output: No space left on device",
    )
    assert second.startswith(f"workerctl: {advice}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--output", "json", "list"), "--output is no option that stands before the command: a command's own options"),
        (("--output=json", "list"), "--output is no option that stands before the command"),
        (("--endpoint", "list"), "--endpoint takes 'list' as its value, and then no command is left"),
        (("--pki-dir", "pki"), "--pki-dir takes 'pki' as its value, and then no command is left"),
        (("--username", "bob"), "no command is given"),
        (("--endpoint", "https://bob@localhost:7005", "list"), "names a user: give https://HOST:PORT, and --username"),
        (("--endpoint", "https://localhost:7005?x", "list"), "not of the form https://HOST:PORT"),
        (("--endpoint", "https://localhost:7005/#x", "list"), "not of the form https://HOST:PORT"),
        (("--retry-seconds", "1x", "list"), "--retry-seconds '1x' is no length of time: give seconds, or a number and"),
        (("stop", str(uuid.UUID(int=0)), "--grace-seconds", "soon"), "--grace-seconds 'soon' is no length of time"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_stands_in_the_wrong_place_is_named(arguments: tuple[str, ...], told: str) -> None:
    result = run_workerctl(*arguments)
    assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1), result.stderr
    assert told in result.stderr.decode()


def test_a_time_limit_may_have_a_unit(shared_daemon: Daemon) -> None:
    result = shared_daemon.workerctl("spawn", "--timeout-seconds", "15m", "--", "true")
    told = shared_daemon.workerctl("status", result.stdout.decode().strip()).stdout.decode()
    assert "timeout:    900 s" in told


def test_help_that_nobody_reads_on_has_the_code_for_it() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        command = [sys.executable, "-m", "workerctl", "--help"]
        result = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (ExitCode.OUTPUT_CLOSED, b"")


def test_help_shows_a_commands_own_options_before_those_of_the_connection() -> None:
    command = [sys.executable, "-m", "workerctl", "run", "--help"]
    shown = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True).stdout
    assert 0 < shown.index("--working-directory") < shown.index("Connection") < shown.index("--endpoint")


def test_an_interrupt_while_the_program_is_being_loaded_is_silent(tmp_path: Path) -> None:
    """A module that is loaded early interrupts the process, as Ctrl-C would just then."""
    (tmp_path / "cyclopts.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "workerctl", "list"]
    result = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (ExitCode.INTERRUPTED, b"")


def test_a_job_that_was_killed_from_outside_is_told(shared_daemon: Daemon) -> None:
    result = shared_daemon.workerctl("run", "--", "sh", "-c", "kill -TERM $$")
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, b"workerctl: job killed by signal 15\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_by_a_signal_tells_which_job_runs_on(shared_daemon: Daemon, number: signal.Signals) -> None:
    command = shared_daemon.command("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"ready\n"
        run.send_signal(number)
        said = run.stderr.read()
        assert run.wait(timeout=30) == -number
    job_id = started_job(shared_daemon, said)
    assert b"runs on" in said
    assert said.count(b"\n") == 1
    assert shared_daemon.workerctl("stop", job_id, "--grace-seconds", "0").returncode == 0


def test_a_job_s_id_may_be_given_with_and_without_its_option(shared_daemon: Daemon) -> None:
    job_id = shared_daemon.workerctl("spawn", "--", "echo", "hello").stdout.decode().strip()
    assert shared_daemon.workerctl("stream-log", job_id, "--past-events").stdout == b"hello\n"
    for command in ("status", "stop"):
        positional, named = (shared_daemon.workerctl(command, *way) for way in ((job_id,), ("--uuid", job_id)))
        assert (positional.returncode, positional.stdout) == (0, named.stdout)
    assert shared_daemon.workerctl("remove", job_id).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--nmae", "x", "--", "true"), "Did you mean --name? See --help."),
        (("stream-log", str(uuid.UUID(int=0)), "--no-follow"), "add --past-events, --offset or --last-bytes"),
        (("pki", "issue-client", "a/b"), "'a/b' cannot be the name of a user"),
        (("list", "ended"), "'ended' is one argument too many."),
        (("pki", "issue-client"), "'pki issue-client' needs NAME."),
        (("status",), "'status' needs UUID."),
        (("status", "--output"), "--output requires an argument."),
        (("status", "abc"), "abc"),
        (("run", "--timeout-seconds", "0", "--", "true"), "--timeout-seconds must be greater than zero and finite"),
        (("spawn", "--working-directory", "here", "--", "true"), "'here' is not an absolute path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_on_the_command_line_is_one_line_and_code_2(
    shared_daemon: Daemon, arguments: tuple[str, ...], told: str
) -> None:
    """Whoever finds it, the client or the daemon."""
    result = shared_daemon.workerctl(*arguments)
    assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (2, b"", 1), result.stderr
    assert told in result.stderr.decode()


def test_a_list_says_that_there_are_more_and_cuts_long_commands(shared_daemon: Daemon) -> None:
    name = str(uuid.uuid4())
    for _ in range(2):
        assert shared_daemon.workerctl("spawn", "--name", name, "--", "true", "x" * 100_000).returncode == 0
    result = shared_daemon.workerctl("list", "--name", name, "--limit", "1")
    assert result.stderr == b"workerctl: --limit 1 leaves older jobs out: a larger one shows them\n"
    assert len(result.stdout) < 1000
    result = shared_daemon.workerctl("list", "--name", name, "--limit", "2", "--output", "json")
    assert result.stderr == b""
    jobs = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(set(job["args"][0]), job["args_cut"]) for job in jobs] == [({"x"}, True)] * 2
    assert all(4000 < len(job["args"][0]) <= 4096 for job in jobs)


def test_a_log_of_an_ended_job_from_now_on_tells_where_its_output_is(shared_daemon: Daemon) -> None:
    for program, told in ((("echo", "hello"), True), (("true",), False)):
        job_id = shared_daemon.workerctl("spawn", "--", *program).stdout.decode().strip()
        assert shared_daemon.workerctl("stream-log", job_id, "--past-events").stderr == b""
        result = shared_daemon.workerctl("stream-log", job_id)
        assert (result.returncode, result.stdout) == (0, b"")
        assert (b"--past-events shows what it printed before" in result.stderr) == told
