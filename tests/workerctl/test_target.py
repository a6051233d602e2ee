"""Which daemon is meant, and as whom."""

from pathlib import Path

import pytest

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
