"""The command pki, whose acts are tested in tests/pki: what it prints, and what it exits with."""

import json
from pathlib import Path

import pytest

from pki.files import key_path
from pki.store import PkiFolder
from workerctl.app import main_with
from workerctl.exit_codes import ExitCode

USER_ID = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority with one user."""
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize()
    folder.issue_client("alice", USER_ID)
    return folder


def run(folder: PkiFolder, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that succeeds, and give what it prints."""
    assert main_with(["--pki-dir", str(folder.path), "pki", *arguments]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


def test_list_has_a_line_for_each_certificate(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    head, *lines = run(folder, capfd, "list").splitlines()
    assert head.split() == ["FILE", "SUBJECT", "FOR", "STATE", "EXPIRES", "SERIAL", "ONLY"]
    assert [line.split()[0] for line in lines] == ["server-ca.crt", "client-ca.crt", "server.crt", "clients/alice.crt"]
    assert lines[-1].split()[1:4] == ["alice", "client", "valid"]


def test_list_and_show_print_the_same_json(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    alice = json.loads(run(folder, capfd, "list", "--output", "json").splitlines()[-1])
    assert alice == json.loads(run(folder, capfd, "show", "alice", "--output", "json"))
    assert (alice["file"], alice["subject"], alice["purpose"], alice["state"], alice["hosts"]) == (
        "clients/alice.crt",
        "alice",
        "client",
        "valid",
        [],
    )
    assert alice["spiffe_id"] == f"spiffe://workerd.internal/user/{USER_ID}"


def test_show_describes_a_daemon_s_certificate(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(":", 1) for line in run(folder, capfd, "show", "server").splitlines())
    assert "localhost" in lines["hosts"] and lines["for"].strip() == "server" and lines["state"].strip() == "valid"
    assert "spiffe id" not in lines


def test_what_is_issued_and_renewed_is_told_by_its_path(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    issued = run(folder, capfd, "issue-server", "build2", "--host", "192.0.2.7", "--days", "30")
    assert issued == f"{folder.path}/servers/build2.crt\n"
    assert run(folder, capfd, "renew", "servers/build2", "--host", "build3") == issued
    assert "build2, build3, 192.0.2.7" in run(folder, capfd, "show", "servers/build2")


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (("show", "nobody"), "clients/nobody.crt", ExitCode.FAILED),
        (("renew", "nobody"), "nobody.crt", ExitCode.FAILED),
        (("show", "../a"), "'../a'", ExitCode.USAGE),
    ],
)
def test_what_is_not_there_is_one_line(
    folder: PkiFolder, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str, code: ExitCode
) -> None:
    assert main_with(["--pki-dir", str(folder.path), "pki", *arguments]) == code
    out, err = capfd.readouterr()
    assert out == "" and told in err and err.count("\n") == 1


def test_revoke_prints_serial_numbers_and_the_list_says_so(
    folder: PkiFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    serial = json.loads(run(folder, capfd, "show", "alice", "--output", "json"))["serial"]
    assert run(folder, capfd, "revoke", "alice") == f"{serial}\n"
    assert json.loads(run(folder, capfd, "show", "alice", "--output", "json"))["state"] == "revoked"
    assert run(folder, capfd, "list").splitlines()[-1].split()[3] == "revoked"


def test_what_was_revoked_before_is_told(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    serial = run(folder, capfd, "revoke", "alice").strip()
    folder.renew("alice")
    assert main_with(["--pki-dir", str(folder.path), "pki", "revoke", "alice"]) == 0
    out, err = capfd.readouterr()
    assert serial in out.splitlines() and len(out.splitlines()) == 2
    assert err == f"workerctl: {serial} was revoked already\n"


def test_revoking_a_certificate_that_is_not_here_is_told(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    serial = "0123456789ABCDEF0123456789ABCDEF"
    assert main_with(["--pki-dir", str(folder.path), "pki", "revoke", serial]) == 0
    out, err = capfd.readouterr()
    assert out == f"{serial}\n"
    assert "no certificate with this serial number was issued here" in err


def test_a_name_that_was_issued_before_asks_for_a_decision(
    folder: PkiFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder.certificate("alice")
    path.unlink()
    key_path(path).unlink()
    options = ["--pki-dir", str(folder.path), "pki", "issue-client", "alice"]
    assert main_with(options) == ExitCode.USAGE
    assert f"give --user-id {USER_ID} for the same user, or --new-user for another" in capfd.readouterr().err
    assert main_with([*options, "--user-id", USER_ID, "--new-user"]) == ExitCode.USAGE
    capfd.readouterr()
    run(folder, capfd, "issue-client", "alice", "--new-user")
    assert USER_ID not in run(folder, capfd, "show", "alice")


def test_what_is_left_of_a_revoked_user_is_told(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    run(folder, capfd, "issue-client", "alicia", "--user-id", USER_ID)
    assert main_with(["--pki-dir", str(folder.path), "pki", "revoke", "alice"]) == 0
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "alicia, which count: `workerctl" in err
    assert f"pki revoke {USER_ID}` revokes them too" in err
    folder.revoke(USER_ID)
    assert run(folder, capfd, "list").count("revoked") == 2


def test_a_list_that_is_not_the_newest_is_told(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    serial = run(folder, capfd, "revoke", "alice").strip()
    folder.client_crl.unlink()
    assert main_with(["--pki-dir", str(folder.path), "pki", "list"]) == 0
    err = capfd.readouterr().err
    assert f"{folder.client_crl} is not the newest list, and pardons 1 that were revoked" in err
    assert f"`workerctl --pki-dir {folder.path} pki revoke {serial}`" in err
    run_revoke = ["--pki-dir", str(folder.path), "pki", "revoke", serial]
    assert main_with(run_revoke) == 0
    capfd.readouterr()
    assert run(folder, capfd, "list").count("revoked") == 1


def test_who_is_not_on_the_list_any_more_is_told(folder: PkiFolder, capfd: pytest.CaptureFixture[str]) -> None:
    serial = run(folder, capfd, "revoke", "alice").strip()
    run(folder, capfd, "issue-client", "bob")
    folder.client_crl.unlink()
    assert main_with(["--pki-dir", str(folder.path), "pki", "revoke", "bob"]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 2
    assert err == f"workerctl: {serial} was revoked already, but not on the list any more: it is again\n"


@pytest.mark.parametrize("act", ["show", "renew"])
@pytest.mark.parametrize("name", ["nosuch", "servers/nosuch"])
def test_who_asks_for_a_certificate_that_is_not_there_is_told_where_to_look(
    folder: PkiFolder, capfd: pytest.CaptureFixture[str], act: str, name: str
) -> None:
    assert main_with(["--pki-dir", str(folder.path), "pki", act, name]) == ExitCode.FAILED
    told = capfd.readouterr().err
    assert f"`workerctl --pki-dir {folder.path} pki list`" in told and "there is no certificate of this name" in told
    assert "pki init" not in told
