"""Which daemon is meant, and as whom."""

from pathlib import Path

import pytest

from pki.store import PkiFolder
from workerctl.app import main_with
from workerctl.errors import UsageInvalid
from workerctl.target import Target


def test_certificates_of_elsewhere_do_not_go_with_the_daemon_of_ones_own(tmp_path: Path) -> None:
    """It is neither looked for nor started."""
    with pytest.raises(UsageInvalid, match=r"WORKERCTL_PKI_DIR.*WORKERCTL_ENDPOINT"):
        Target(pki_directory=tmp_path).resolve()


@pytest.mark.parametrize(("given", "environment"), [(("--pki-dir", ""), None), ((), "")], ids=["option", "environment"])
def test_empty_folder_of_certificates_is_none(
    given: tuple[str, ...], environment: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the current folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    if environment is not None:
        monkeypatch.setenv("WORKERCTL_PKI_DIR", environment)
    assert main_with([*given, "pki", "init"]) == 0
    assert (tmp_path / "state" / "workerd" / "pki" / "server.crt").exists()


@pytest.mark.parametrize(
    ("here", "username", "presented"),
    [
        (["acrimon"], None, "acrimon"),
        (["acrimon", "login"], None, "login"),
        (["acrimon", "bob"], None, "login"),
        (["acrimon"], "bob", "bob"),
        (["acrimon", "login"], "bob", "login"),
        ([], None, "login"),
    ],
)
def test_the_only_certificate_is_presented_where_nobody_is_named(
    here: list[str], username: str | None, presented: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is named is not replaced by another but the login name's, which may act for them."""
    monkeypatch.setenv("LOGNAME", "login")  # what getpass.getuser looks at first
    PkiFolder(tmp_path).initialize(users=here)
    assert Target("https://localhost:1", username, tmp_path).presented() == presented
