"""The daemon of the user's own: found, or started when none runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pki.store import PkiFolder
from tests.daemon import end_jobs


class Home:
    """A user's home with nothing in it."""

    def __init__(self, path: Path) -> None:
        self.state = path / ".local" / "state" / "workerd"
        passed_on = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        self.environment = {"HOME": str(path), **passed_on}

    def workerctl(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "workerctl", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=60, check=False)

    @property
    def owner(self) -> str:
        """Whom the daemon made a certificate for, and nobody else has."""
        return next(name for name in PkiFolder(self.state / "pki").users() if name != "bob")

    def daemon_pid(self) -> int:
        return int((self.state / "lock").read_text())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    handle = os.pidfd_open(home.daemon_pid())
    signal.pidfd_send_signal(handle, signal.SIGTERM)
    os.close(handle)
    end_jobs(home.state)


def test_the_first_command_needs_no_preparation(home: Home) -> None:
    result = home.workerctl("run", "--", "echo", "hello")
    assert (result.stdout, result.stderr, result.returncode) == (b"hello\n", b"", 0)


def test_the_second_command_finds_the_same_daemon(home: Home) -> None:
    job_id = home.workerctl("spawn", "--", "true").stdout.decode().strip()
    pid = home.daemon_pid()
    assert job_id in home.workerctl("list").stdout.decode()
    assert home.daemon_pid() == pid


def test_a_killed_daemon_is_started_again_and_knows_its_jobs(home: Home) -> None:
    job_id = home.workerctl("spawn", "--", "sh", "-c", "echo still here").stdout.decode().strip()
    handle = os.pidfd_open(home.daemon_pid())
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    os.close(handle)
    log = home.workerctl("stream-log", "--past-events", "--uuid", job_id)
    assert (log.stdout, log.returncode) == (b"still here\n", 0), log.stderr


def test_of_several_first_commands_at_once_one_starts_the_daemon(home: Home) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda number: home.workerctl("run", "--", "echo", str(number)), range(4)))
    assert [result.stdout for result in results] == [b"0\n", b"1\n", b"2\n", b"3\n"]


def test_a_long_log_of_the_daemons_is_put_aside_when_it_is_started_again(home: Home) -> None:
    """And the one that was put aside before goes."""
    home.state.mkdir(parents=True)
    log, older = home.state / "daemon.log", home.state / "daemon.log.1"
    older.write_bytes(b"older\n")
    log.write_bytes(b"old\n" * (2 << 20))
    assert home.workerctl("run", "--", "true").returncode == 0
    assert older.stat().st_size == 8 << 20
    assert log.stat().st_size < 1 << 20


def test_its_owner_is_its_administrator_and_nobody_else(home: Home) -> None:
    """However often it is started; the daemon makes the certificate with the first start."""
    job_id = home.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
    assert home.workerctl("pki", "issue-client", "bob").returncode == 0
    for _ in range(2):
        handle = os.pidfd_open(home.daemon_pid())
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
        assert b"roles: admin\n" in home.workerctl("--certificate", home.owner, "whoami").stdout
    assert b"roles" not in home.workerctl("--username", "bob", "whoami").stdout
    assert home.workerctl("--username", "bob", "stop", job_id).returncode == 123
    as_bob = home.workerctl("--certificate", home.owner, "policy", "test", "--as", "bob", "--action", "spawn")
    assert as_bob.returncode == 0, as_bob.stderr


def test_others_cannot_read_the_state(home: Home) -> None:
    home.workerctl("spawn", "--", "true")
    assert home.state.stat().st_mode & 0o077 == 0
    private = (home.state / "daemon.log", *home.state.rglob("*.key"))
    assert all(path.stat().st_mode & 0o077 == 0 for path in private)
