"""What the daemon and the client refuse to use because other accounts can change it, or read what is secret."""

import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pki.files import key_path
from pki.store import PkiFolder
from tests.commands import run_workerctl
from tests.daemon import USER, Daemon, running_daemon
from tests.system.test_exhaustion import become
from tests.waiting import wait_until
from workerctl.exit_codes import ExitCode

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")
SOMEBODY = 23461
LAX = [
    (".", 0o777),
    ("pki", 0o777),
    ("policies", 0o777),
    ("jobs", 0o777),
    ("spool", 0o666),
    ("request-keys", 0o640),
    ("policies/site.cedar", 0o666),
    ("pki/server.crt", 0o666),
    ("pki/client-ca.crt", 0o666),
    ("pki/server.key", 0o644),
    ("pki/client-ca.key", 0o640),
]


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that has served once and stands still, with a policy of its operator's."""
    with running_daemon(tmp_path / "above" / "state") as daemon:
        daemon.stop()
        (daemon.state / "policies").mkdir()
        (daemon.state / "policies" / "site.cedar").write_text("// none\n")
        yield daemon


def start(state: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon that is going to refuse."""
    command = [sys.executable, "-m", "workerd", "--listen", "127.0.0.1:0", "--state-dir", str(state), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(("name", "mode"), LAX, ids=[name for name, _ in LAX])
def test_a_daemon_starts_once_the_command_that_it_names_has_been_run(stopped: Daemon, name: str, mode: int) -> None:
    lax = stopped.state / name
    lax.chmod(mode)
    refused = start(stopped.state)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert str(lax) in refused.stderr
    [command] = re.findall(r"`(chmod .*?)`", refused.stderr)
    subprocess.run(["sh", "-c", command], check=True, timeout=10)
    stopped.start()
    assert stopped.workerctl("whoami").returncode == 0


def test_folders_above_the_state_directory_count_too(stopped: Daemon) -> None:
    stopped.state.parent.chmod(0o777)
    refused = start(stopped.state)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert f"`chmod go-w {stopped.state.parent}`" in refused.stderr


def test_a_configuration_that_others_may_write_to_is_refused(stopped: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "workerd.toml"
    file.write_text("grace-seconds = 1\n")
    file.chmod(0o666)
    refused = start(stopped.state, "--config", str(file))
    assert refused.returncode == 2
    assert f"`chmod go-w {file}`" in refused.stderr


def test_a_state_directory_that_others_may_write_to_is_not_drained(stopped: Daemon) -> None:
    stopped.start()
    stopped.state.chmod(0o777)
    refused = start(stopped.state, "--drain")
    assert refused.returncode == 1
    assert f"`chmod go-w {stopped.state}`" in refused.stderr
    assert not (stopped.state / "drain").exists()


@as_root
@pytest.mark.parametrize("name", [".", "pki", "pki/client-ca.crt", "pki/server.key", "policies", "policies/site.cedar"])
def test_a_daemon_does_not_use_what_belongs_to_another_account(stopped: Daemon, name: str) -> None:
    os.chown(stopped.state / name, SOMEBODY, SOMEBODY)
    refused = start(stopped.state)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert f"it belongs to uid {SOMEBODY}" in refused.stderr
    assert str(stopped.state / name) in refused.stderr


@as_root
@pytest.mark.parametrize("name", ["lock", "catalog.lock", "audit/head"])
def test_a_daemon_writes_to_no_file_and_waits_for_no_lock_of_another_account(stopped: Daemon, name: str) -> None:
    """The account may have put it there while it could write to the folder, and may hold the file's lock."""
    theirs = stopped.state / name
    os.chown(theirs, SOMEBODY, SOMEBODY)
    with theirs.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = start(stopped.state)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert str(theirs) in refused.stderr
    assert f"it belongs to uid {SOMEBODY}" in refused.stderr


def test_what_becomes_writable_while_the_daemon_runs_is_not_taken_up(stopped: Daemon) -> None:
    stopped.start()
    policy = stopped.state / "policies" / "site.cedar"
    policy.chmod(0o666)
    policy.write_text("forbid (principal, action, resource);\n")
    wait_until(lambda: f"`chmod go-w {policy}`" in stopped.errors(), "a refusal")
    stopped.pki.client_ca.chmod(0o666)
    wait_until(lambda: f"`chmod go-w {stopped.pki.client_ca}`" in stopped.errors(), "a refusal")
    assert stopped.workerctl("whoami").returncode == 0


@pytest.mark.parametrize(
    ("name", "mode"), [(".", 0o777), ("server-ca.crt", 0o666), ("clients/{}.key", 0o644), ("clients/{}.crt", 0o666)]
)
def test_a_client_uses_no_certificates_that_others_can_change_nor_a_key_that_they_can_read(
    shared_daemon: Daemon, tmp_path: Path, name: str, mode: int
) -> None:
    folder = PkiFolder(tmp_path / "pki")
    shutil.copytree(shared_daemon.pki.path, folder.path)
    lax = folder.path / name.format(USER)
    lax.chmod(mode)
    command = ("--endpoint", shared_daemon.endpoint, "--username", USER, "--pki-dir", str(folder.path), "whoami")
    refused = run_workerctl(*command)
    assert refused.returncode == ExitCode.FAILED
    assert refused.stderr.count(b"\n") == 1
    [mend] = re.findall(rb"`(chmod .*?)`", refused.stderr)
    subprocess.run(["sh", "-c", mend], check=True, timeout=10)
    assert run_workerctl(*command).returncode == 0


def test_no_authority_is_made_where_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki").chmod(0o777)
    refused = run_workerctl("--pki-dir", str(tmp_path / "pki"), "pki", "init")
    assert refused.returncode == ExitCode.FAILED
    assert f"`chmod go-w {tmp_path / 'pki'}`".encode() in refused.stderr
    assert not list((tmp_path / "pki").iterdir())


def test_a_certificate_is_not_signed_with_a_key_that_others_can_read(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize()
    key_path(folder.client_ca).chmod(0o644)
    refused = run_workerctl("--pki-dir", str(folder.path), "pki", "issue-client", "bob")
    assert refused.returncode == ExitCode.FAILED
    assert f"`chmod go= {key_path(folder.client_ca)}`".encode() in refused.stderr
    assert folder.users() == []


@pytest.fixture
def home_of_another() -> Iterator[Path]:
    """The home of another account, which has nothing in it but the way to its state directory."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        home = Path(folder, "home")
        (home / ".local" / "state").mkdir(parents=True)
        for path in (home, *home.rglob("*")):
            os.chown(path, SOMEBODY, SOMEBODY)
        yield home
        with_lock = home / ".local" / "state" / "workerd" / "lock"
        if with_lock.exists() and (pid := with_lock.read_text()):  # as the code before would have left one
            os.kill(int(pid), signal.SIGTERM)


def run_as_root_in(home: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a job as root with another account's HOME, as `sudo -E` and `su` do."""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")}
    command = [sys.executable, "-m", "workerctl", "run", "--", "id", "-u"]
    return subprocess.run(command, env={**environment, "HOME": str(home)}, capture_output=True, timeout=60, check=False)


@as_root
def test_root_starts_no_daemon_in_the_home_of_another_account(home_of_another: Path) -> None:
    state = home_of_another / ".local" / "state"
    refused = run_as_root_in(home_of_another)
    assert (refused.stdout, refused.returncode) == (b"", ExitCode.FAILED)
    assert f"{home_of_another} is refused: it belongs to uid {SOMEBODY}".encode() in refused.stderr
    assert b"HOME=/root workerctl" in refused.stderr
    assert not list(state.iterdir())


@as_root
def test_root_goes_to_no_daemon_that_another_account_says_is_root_s(home_of_another: Path) -> None:
    """It would see what root runs, with all variables."""
    state = home_of_another / ".local" / "state" / "workerd"
    state.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as server, (state / "endpoint").open("w") as note:
        note.write(f"https://localhost:{server.getsockname()[1]}\n")
        note.flush()
        fcntl.flock(note, fcntl.LOCK_EX)
        for path in (state, state / "endpoint"):
            os.chown(path, SOMEBODY, SOMEBODY)
        refused = run_as_root_in(home_of_another)
        assert refused.returncode == ExitCode.FAILED
        assert f"{home_of_another} is refused: ".encode() in refused.stderr
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


@as_root
def test_root_starts_no_daemon_through_a_link_of_another_account_into_its_own_home(home_of_another: Path) -> None:
    """The account can have the link lead elsewhere as soon as it has been checked."""
    link = home_of_another / ".local" / "state" / "workerd"
    with tempfile.TemporaryDirectory(dir=pwd.getpwuid(0).pw_dir, ignore_cleanup_errors=True) as roots:
        link.symlink_to(roots)
        os.lchown(link, SOMEBODY, SOMEBODY)
        refused = run_as_root_in(home_of_another)
        assert (refused.stdout, refused.returncode) == (b"", ExitCode.FAILED)
        assert f"{home_of_another} is refused: it belongs to uid {SOMEBODY}".encode() in refused.stderr
        assert os.listdir(roots) == []


@as_root
def test_root_s_daemon_takes_no_configuration_out_of_the_mount_namespace_of_another_account(
    home_of_another: Path,
) -> None:
    """There, another folder is in the place of root's home, and links through procfs lead to it (proc_pid_root(5))."""
    jail, home, name = home_of_another / "jail", pwd.getpwuid(0).pw_dir, f"{os.urandom(8).hex()}.toml"
    jail.mkdir()
    (jail / name).write_text('run-as = "an-account-of-theirs"\n')
    for theirs in (jail, jail / name):
        os.chown(theirs, SOMEBODY, SOMEBODY)
    account = pwd.struct_passwd(("somebody", "x", SOMEBODY, SOMEBODY, "", "/", "/bin/sh"))
    script = 'mount --bind "$1" "$2" && echo ready && exec sleep 60'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(jail), home]
    with subprocess.Popen([*become(account), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                pytest.skip(f"other accounts may mount nothing here: {process.communicate(timeout=10)[1]!r}")
            theirs, ours = home_of_another / "link", home_of_another.with_name("link")
            for link, owner, refused_step in ((theirs, SOMEBODY, home_of_another), (ours, 0, f"/proc/{process.pid}")):
                link.symlink_to(f"/proc/{process.pid}/root{home}/{name}")
                os.lchown(link, owner, -1)
                refused = start(home_of_another.with_name("state"), "--config", str(link))
                assert "an-account-of-theirs" not in refused.stderr
                assert f"{refused_step} is refused: it belongs to uid {SOMEBODY}" in refused.stderr
                assert refused.returncode == 2
        finally:
            process.kill()


@as_root
def test_root_follows_no_link_that_another_account_put_where_a_daemon_writes(home_of_another: Path) -> None:
    state = home_of_another / ".local" / "state" / "workerd"
    state.mkdir(mode=0o700)
    victim = home_of_another.with_name("victim")
    victim.write_text("root's\n")
    victim.chmod(0o644)
    (state / "daemon.log").symlink_to(victim)
    for path in (state, state / "daemon.log"):
        os.lchown(path, SOMEBODY, SOMEBODY)
    assert run_as_root_in(home_of_another).returncode == ExitCode.FAILED
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("root's\n", 0o644)


@pytest.mark.parametrize("name", ["daemon.log", "start.lock"])
def test_the_own_daemon_is_started_with_no_link_in_the_place_of_its_files(tmp_path: Path, name: str) -> None:
    state = tmp_path / "workerd"
    state.mkdir()
    (tmp_path / "victim").write_text("other\n")
    (tmp_path / "victim").chmod(0o644)
    (state / name).symlink_to(tmp_path / "victim")
    refused = run_workerctl("run", "--", "true", environment={**os.environ, "XDG_STATE_HOME": str(tmp_path)})
    assert refused.returncode == ExitCode.FAILED
    assert f"`rm {state / name}`".encode() in refused.stderr
    assert ((tmp_path / "victim").read_text(), (tmp_path / "victim").stat().st_mode & 0o777) == ("other\n", 0o644)
    assert not (state / "lock").exists()
