"""The daemon of the user's own: found, or started when none runs; ended and started again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pki.store import PkiFolder
from system import pidfd
from tests.daemon import end_jobs
from tests.locks import held_by_another
from workerctl import own_daemon
from workerctl.errors import DaemonNotEnded, DaemonNotStarted
from workerctl.exit_codes import ExitCode
from workerd.engine.folder import JobFolder
from workerd.engine.tree import descendants, parent_of


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
    assert home.workerctl("daemon", "stop").returncode == 0
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


def test_its_status_is_told_by_the_exit_code_too(home: Home) -> None:
    before = home.workerctl("daemon", "status")
    assert (before.returncode, before.stderr) == (ExitCode.NO, b"")
    assert before.stdout.startswith(b"state:      not running\n")
    assert home.workerctl("run", "--", "true").returncode == 0
    running = home.workerctl("daemon", "status", "--output", "json")
    assert running.returncode == 0, running.stderr
    endpoint = (home.state / "endpoint").read_text().strip()
    state = {"running": True, "pid": home.daemon_pid(), "endpoint": endpoint, "state_dir": str(home.state)}
    assert json.loads(running.stdout) == state


def test_stopping_it_waits_for_its_end_and_leaves_its_jobs_running(home: Home) -> None:
    job_id = home.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
    with pidfd.hold(home.daemon_pid()) as daemon:
        stopped = home.workerctl("daemon", "stop")
        assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, b"", b"")
        assert pidfd.has_ended(daemon)
    assert (home.state / "lock").read_text() == ""
    assert JobFolder(home.state / "jobs" / job_id).is_locked()
    again = home.workerctl("daemon", "stop")
    assert (again.returncode, again.stderr.count(b"\n")) == (0, 1)
    assert b"running" in home.workerctl("status", job_id).stdout


def test_stopping_it_ends_no_process_that_has_the_id_of_one_that_was_killed(home: Home) -> None:
    home.state.mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as innocent:
        (home.state / "lock").write_text(str(innocent.pid))
        assert home.workerctl("daemon", "stop").returncode == 0
        assert innocent.poll() is None
        innocent.kill()


def test_one_that_does_not_end_is_told_with_what_ends_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home.workerctl("run", "--", "true").returncode == 0
    monkeypatch.setenv("HOME", home.environment["HOME"])
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(own_daemon, "_END_SECONDS", 0.2)
    os.kill(pid := home.daemon_pid(), signal.SIGSTOP)
    try:
        with own_daemon.holder() as daemon:
            assert daemon is not None
            with pytest.raises(DaemonNotEnded, match=rf"process {pid}\b.*`kill -9 {pid}`"):
                own_daemon.end(daemon)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_restarting_it_puts_another_in_its_place_that_knows_its_jobs(home: Home) -> None:
    job_id = home.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
    before = home.daemon_pid()
    restarted = home.workerctl("daemon", "restart")
    assert restarted.returncode == 0, restarted.stderr
    assert restarted.stdout == (home.state / "endpoint").read_bytes()
    assert home.daemon_pid() != before
    assert b"running" in home.workerctl("status", job_id).stdout


def test_restarting_starts_it_where_none_runs(home: Home) -> None:
    assert home.workerctl("daemon", "restart").returncode == 0
    assert home.workerctl("daemon", "status").returncode == 0


def test_one_that_was_started_with_options_of_the_user_s_is_not_restarted_without_them(home: Home) -> None:
    command = [sys.executable, "-m", "workerd", "--listen", "127.0.0.1:0", "--grace-seconds", "1"]
    with subprocess.Popen(command, env=home.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        refused = home.workerctl("daemon", "restart")
        assert refused.returncode == ExitCode.USAGE
        assert b"workerctl daemon stop" in refused.stderr
        assert daemon.poll() is None
        assert home.workerctl("daemon", "stop").returncode == 0
        assert daemon.wait(30) == 0


def test_the_daemon_of_an_endpoint_is_not_ones_own(home: Home) -> None:
    for verb in ("status", "stop", "restart"):
        refused = home.workerctl("--endpoint", "https://localhost:1", "daemon", verb)
        assert refused.returncode == ExitCode.USAGE
        assert b"WORKERCTL_ENDPOINT" in refused.stderr


def test_its_processes_have_nothing_of_the_environment_that_they_do_not_need(home: Home) -> None:
    """Such as secrets that a shell has exported. Time zone, language and the way to Python are needed."""
    home.environment |= {"API_TOKEN": "hunter2", "WORKERD_GRACE_SECONDS": "1", "TZ": "UTC"}
    check_environments(home, home.workerctl("spawn", "--", "sleep", "1000"), with_main=True)


def test_the_processes_of_one_that_was_started_by_hand_pass_nothing_on_either(home: Home) -> None:
    home.environment |= {"API_TOKEN": "hunter2", "WORKERD_GRACE_SECONDS": "1", "TZ": "UTC"}
    command = [sys.executable, "-m", "workerd", "--listen", "127.0.0.1:0", "--processes", "2"]
    with subprocess.Popen(command, env=home.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        check_environments(home, home.workerctl("spawn", "--", "sleep", "1000"), with_main=False)
        assert home.workerctl("daemon", "stop").returncode == 0


def check_environments(home: Home, spawned: subprocess.CompletedProcess[bytes], *, with_main: bool) -> None:
    """Look into what each process of a daemon was started with, the supervisor of a job included."""
    status = home.workerctl("status", spawned.stdout.decode().strip(), "--output", "json")
    job = json.loads(status.stdout)["pid"]
    supervisor = parent_of(job)
    assert supervisor is not None
    main = home.daemon_pid()
    ours = {main, supervisor, *(pid for pid, _ in descendants(main))} - {job} - (set() if with_main else {main})
    assert len(ours) >= 3
    for pid in ours:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:  # only root can look
            continue
        assert b"TZ=UTC\0" in variables
        assert b"hunter2" not in variables
        assert b"WORKERD_GRACE" not in variables


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of the own daemon, for code that this process runs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = own_daemon.state_directory()
    state.mkdir(0o700)
    return state


def test_a_client_that_was_stopped_while_it_started_the_daemon_holds_up_no_other_for_good(
    own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_daemon, "_START_SECONDS", 0.2)
    monkeypatch.setattr(own_daemon, "_KILLED_SECONDS", 0.1)
    with (
        held_by_another(own_state / "start.lock", stopped=True) as holder,
        pytest.raises(DaemonNotStarted, match=rf"not started: .*`kill -CONT {holder}`"),
    ):
        own_daemon.find_or_start()


@pytest.mark.parametrize("said", ["", "serving"], ids=["nothing said", "half a line said"])
def test_a_daemon_that_does_not_come_to_serve_is_ended_and_told_of(
    own_state: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(own_daemon, "_START_SECONDS", 0.5)
    started = []

    class Stuck(subprocess.Popen[bytes]):
        def __init__(self, _: list[str], **options: Any) -> None:
            super().__init__(["sh", "-c", f"printf '{said}'; exec sleep 1000"], **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Stuck)
    with pytest.raises(DaemonNotStarted, match=r"did not serve within 0\.5 s"):
        own_daemon.find_or_start()
    assert [daemon.returncode for daemon in started] == [-signal.SIGKILL]
    assert (own_state / "start.lock").read_text() == ""
