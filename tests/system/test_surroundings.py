"""Commands in surroundings that lack something: an output, a name for the user."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pki.store import PkiFolder
from tests.daemon import Daemon, end_jobs
from workerctl.exit_codes import ExitCode

NAMELESS = 54321
AS_NAMELESS = ["unshare", "--user", f"--map-user={NAMELESS}", f"--map-group={NAMELESS}", "--"]


def shell(command: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line of sh, which finds the arguments as "$@"."""
    return subprocess.run(["sh", "-c", command, "sh", *arguments], capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "arguments",
    [("list",), ("list", "--output", "json"), ("whoami",), ("spawn", "--", "true"), ("run", "--", "echo", "x")],
)
def test_a_closed_output_is_told_by_the_exit_code(shared_daemon: Daemon, arguments: tuple[str, ...]) -> None:
    assert shared_daemon.workerctl("spawn", "--", "true").returncode == 0
    result = shell('"$@" >&-', *shared_daemon.command(*arguments))
    assert result.returncode == ExitCode.OUTPUT_CLOSED
    assert b"Traceback" not in result.stderr


def test_an_output_that_nobody_reads_is_told_by_the_exit_code(shared_daemon: Daemon) -> None:
    assert shared_daemon.workerctl("spawn", "--", "true").returncode == 0
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as output:
        result = subprocess.run(
            shared_daemon.command("list"), stdout=output, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert (result.returncode, result.stderr) == (ExitCode.OUTPUT_CLOSED, b"")


def test_without_standard_error_results_stay_alone_on_the_output(shared_daemon: Daemon) -> None:
    result = shell('"$@" 2>&- <&-', *shared_daemon.command("run", "--timeout-seconds", "0.2", "--", "sleep", "1000"))
    assert (result.stdout, result.returncode) == (b"", ExitCode.TIMED_OUT)


@pytest.mark.skipif(
    subprocess.run([*AS_NAMELESS, "true"], capture_output=True, check=False).returncode != 0,
    reason="user namespaces are not to be had",
)
def test_a_user_without_a_name_is_served_and_told_what_to_do_where_certificates_are_several(tmp_path: Path) -> None:
    """A user id that no account has, as in a container: here in a user namespace (user_namespaces(7))."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HOME": str(tmp_path)}

    def workerctl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [*AS_NAMELESS, sys.executable, "-m", "workerctl", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)

    state = tmp_path / ".local" / "state" / "workerd"
    nameless = workerctl("whoami")
    try:
        assert nameless.stdout.startswith(f"{NAMELESS}, spiffe://".encode()), nameless.stderr
        PkiFolder(state / "pki").issue_client("bob")
        nameless = workerctl("whoami")
        assert (nameless.returncode, nameless.stderr.count(b"\n")) == (ExitCode.USAGE, 1), nameless.stderr
        assert f"--username {NAMELESS}".encode() in nameless.stderr
        named = workerctl("--username", str(NAMELESS), "run", "--", "sh", "-c", "echo $USER; pwd")
        assert (named.stdout, named.stderr, named.returncode) == (b"54321\n/\n", b"", 0)
        assert PkiFolder(state / "pki").users() == [str(NAMELESS), "bob"]
    finally:
        os.kill(int((state / "lock").read_text()), signal.SIGTERM)
        end_jobs(state)
