"""Authorities out of the daemon's reach, with the real programs."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pki.store import PkiFolder
from tests.commands import run_workerctl
from tests.daemon import Daemon, end_jobs
from workerctl.exit_codes import ExitCode

SECONDS = 60


def pki(daemon_folder: Path, *arguments: str, code: int = 0) -> tuple[list[str], str]:
    """Run a command of `workerctl pki`; return the lines that it prints, and what it says on standard error."""
    result = run_workerctl("--pki-dir", str(daemon_folder), "pki", *arguments)
    assert result.returncode == code, result.stderr
    return result.stdout.decode().splitlines(), result.stderr.decode()


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return tmp_path / "authority"


@pytest.fixture
def daemon(tmp_path: Path, authority: Path) -> Daemon:
    """A daemon, not started, whose authorities are in another folder, and its user alice."""
    state = tmp_path / "state"
    assert pki(state / "pki", "init", "--authority", str(authority)) == ([str(state / "pki")], "")
    assert pki(state / "pki", "issue-client", "alice") == ([str(authority / "clients" / "alice.crt")], "")
    return Daemon(state, certificates=authority)


def test_a_daemon_serves_without_any_key_of_the_authorities(daemon: Daemon, authority: Path, tmp_path: Path) -> None:
    """Users are issued, renewed and revoked where the keys are; calls for which the daemon needs a key are refused."""
    folder = daemon.pki.path
    assert {path.name for path in folder.rglob("*.key")} == {"server.key"}
    daemon.start()
    try:
        assert daemon.workerctl("whoami", user="alice").returncode == 0
        narrowed = daemon.workerctl(
            "credential", "issue", "--allow", "status", "--out", str(tmp_path / "n"), user="alice"
        )
        assert narrowed.returncode != 0
        assert b"the key of its authority, client-ca.key, is kept elsewhere" in narrowed.stderr
        pki(folder, "renew", "alice")
        assert daemon.workerctl("whoami", user="alice").returncode == 0
        serials, errors = pki(folder, "revoke", "alice")
        assert (len(serials), errors) == (2, "")
        refused = daemon.workerctl("whoami", user="alice")
        assert refused.returncode != 0 and b"revoked" in refused.stderr
        states = {each["file"]: each["state"] for each in map(json.loads, pki(folder, "list", "--output", "json")[0])}
        assert states["server.crt"] == "valid"
        assert states[str(authority / "clients" / "alice.crt")] == "revoked"
    finally:
        daemon.close()


def test_authorities_that_are_out_of_reach_are_asked_for(
    daemon: Daemon, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = tmp_path / "aside"
    authority.rename(aside)
    _, errors = pki(daemon.pki.path, "issue-client", "bob", code=ExitCode.FAILED)
    assert f"there are no authorities in {authority}" in errors and "--authority" in errors
    lines, errors = pki(daemon.pki.path, "list")
    assert [line.split()[0] for line in lines[1:]] == ["server-ca.crt", "client-ca.crt", "server.crt"]
    assert f"only what the daemon has is shown: there are no authorities in {authority}" in errors
    assert pki(daemon.pki.path, "issue-client", "bob", "--authority", str(aside))[0] == [f"{aside}/clients/bob.crt"]
    monkeypatch.setenv("WORKERCTL_AUTHORITY", str(aside))
    assert pki(daemon.pki.path, "issue-client", "carol")[0] == [f"{aside}/clients/carol.crt"]


def test_a_list_that_reaches_no_daemon_is_told(daemon: Daemon, authority: Path) -> None:
    daemon.pki.client_crl.mkdir()
    _, errors = pki(authority, "revoke", "alice", code=ExitCode.FAILED)
    assert "the daemon does not know yet who was revoked" in errors
    daemon.pki.client_crl.rmdir()
    _, errors = pki(daemon.pki.path, "list")
    assert f"`install -m 644 {authority / 'client-ca.crl'} {daemon.pki.client_crl}`" in errors
    (authority / "daemons").unlink()
    _, errors = pki(authority, "revoke", "alice")
    assert f"copy {authority / 'client-ca.crl'} to that of each" in errors


def test_the_authorities_of_a_daemon_that_runs_are_moved_away(tmp_path: Path, authority: Path) -> None:
    daemon = Daemon(tmp_path / "state")
    daemon.start()
    try:
        lines, errors = pki(daemon.pki.path, "move-authority", str(authority))
        assert lines == [str(authority)]
        assert f"the certificates of acrimon are in {authority}/clients now" in errors
        assert {path.name for path in daemon.pki.path.rglob("*.key")} == {"server.key"}
        told = daemon.workerctl("whoami").stderr.decode()
        assert f"copy yours from {authority}/clients to {daemon.pki.path}/clients" in told
        daemon.certificates = authority
        job = daemon.workerctl("run", "--", "echo", "here")
        assert (job.returncode, job.stdout) == (0, b"here\n")
        daemon.stop()
        daemon.start()
        assert daemon.workerctl("whoami").returncode == 0
        pki(daemon.pki.path, "revoke", "acrimon")
        assert daemon.workerctl("whoami").returncode != 0
    finally:
        daemon.close()


def test_openssl_verifies_what_authorities_elsewhere_sign(daemon: Daemon, authority: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl: install Debian's openssl")
    folder = daemon.pki

    def verify(purpose: str, ca: Path, certificate: Path, *options: str) -> str:
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(ca), *options]
        result = subprocess.run(
            [*command, str(certificate)], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        return result.stdout + result.stderr

    alice = PkiFolder(authority).client_certificate("alice")
    assert verify("sslserver", folder.server_ca, folder.server_certificate).endswith(": OK\n")
    assert verify("sslclient", folder.client_ca, alice).endswith(": OK\n")
    assert "error" in verify("sslclient", folder.server_ca, alice)
    pki(folder.path, "revoke", "alice")
    crl = ("-crl_check", "-CRLfile", str(folder.client_crl))
    assert "certificate revoked" in verify("sslclient", folder.client_ca, alice, *crl)


def test_your_own_daemon_keeps_everything_in_one_folder(tmp_path: Path) -> None:
    state = tmp_path / "home" / ".local" / "state" / "workerd"
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    result = run_workerctl("run", "--", "true", environment=environment)
    try:
        assert result.returncode == 0, result.stderr
        assert not (state / "pki" / "authority").exists()
        assert {path.name for path in (state / "pki").glob("*.key")} == {"client-ca.key", "server-ca.key", "server.key"}
    finally:
        run_workerctl("daemon", "stop", environment=environment)
        end_jobs(state)
