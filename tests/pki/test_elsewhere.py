"""Authorities in a folder of their own: the content of a daemon's folder, its updates, and moving authorities."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from pki.errors import AlreadyExists, AuthorityDiffers, AuthorityMissing, InvalidAuthority, ListNotCopied, Missing
from pki.files import key_path, load_certificate
from pki.moving import move_authority
from pki.store import PkiFolder
from pki.tls import client_context, server_context

PUBLIC = {"authority", "client-ca.crt", "server-ca.crt"}
OWN = {"server.crt", "server.key"}


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """A daemon's folder whose authorities are in another, with one user."""
    folder = PkiFolder(tmp_path / "daemon", tmp_path / "authority")
    folder.initialize(trust_domain="prod.example.org")
    folder.issue_client("alice")
    return folder


def names(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()}


def as_daemon(folder: PkiFolder) -> PkiFolder:
    """Return the folder as a daemon reads it, without the authorities' folder."""
    return PkiFolder(folder.path)


def test_the_daemons_folder_has_its_own_pair_and_certificates_of_the_authorities_only(folder: PkiFolder) -> None:
    assert names(folder.path) == PUBLIC | OWN
    assert names(folder.authority) == {
        *("server-ca.crt", "server-ca.key", "client-ca.crt", "client-ca.key", "client-ca.issued.jsonl", "daemons"),
        *("clients/alice.crt", "clients/alice.key"),
    }
    assert as_daemon(folder).trust_domain() == "prod.example.org"
    server_context(as_daemon(folder))
    client_context(PkiFolder(folder.authority), "alice")


def test_the_authorities_folder_is_remembered_and_may_be_given(folder: PkiFolder, tmp_path: Path) -> None:
    assert as_daemon(folder).with_authority() == folder
    moved = tmp_path / "moved"
    folder.authority.rename(moved)
    with pytest.raises(AuthorityMissing, match=f"no authorities in {folder.authority}.* --authority"):
        as_daemon(folder).with_authority()
    assert as_daemon(folder).with_authority(moved).issue_client("bob") == moved / "clients" / "bob.crt"


def test_what_is_done_with_the_authorities_elsewhere_reaches_both_folders(folder: PkiFolder) -> None:
    folder = as_daemon(folder).with_authority()
    old = load_certificate(folder.server_certificate)
    assert folder.renew("server", ["build2.example.org"]) == folder.path / "server.crt"
    assert load_certificate(folder.server_certificate) != old
    assert folder.renew("alice") == folder.authority / "clients" / "alice.crt"
    revoked = folder.revoke("alice")
    assert len(revoked) == 2
    assert folder.outdated_copies() == [folder.client_crl]
    assert folder.copy_list() == [folder.path]
    assert folder.outdated_copies() == []
    assert as_daemon(folder).revoked() == revoked.keys()
    assert names(folder.path) == PUBLIC | OWN | {"client-ca.crl"} | {
        f"replaced/{each.name}" for each in (folder.path / "replaced").iterdir()
    }
    shown = [str(path.relative_to(path.parents[1])) for path in folder.certificates()]
    assert shown[:3] == ["authority/server-ca.crt", "authority/client-ca.crt", "daemon/server.crt"]
    assert shown[3] == "clients/alice.crt"
    assert len(shown) == 6


def test_a_pair_that_was_copied_to_the_daemons_folder_is_revoked_like_others(folder: PkiFolder) -> None:
    shutil.copytree(folder.authority / "clients", folder.path / "clients")
    serial = load_certificate(folder.client_certificate("alice")).serial_number
    assert folder.revoke(f"{serial:x}").keys() == folder.revoke("alice").keys() == {serial}
    client_context(as_daemon(folder), "alice")


def test_a_list_that_cannot_be_copied_names_the_command_that_copies_it(folder: PkiFolder, tmp_path: Path) -> None:
    folder.revoke("alice")
    folder.client_crl.mkdir()
    second = PkiFolder(tmp_path / "second", folder.authority)
    second.initialize()
    for each in (folder, PkiFolder(folder.authority)):
        second.client_crl.unlink()
        with pytest.raises(ListNotCopied, match=f"`install -m 644 {folder.authority_crl} {folder.client_crl}`"):
            each.copy_list()
        assert as_daemon(second).revoked() == folder.revoked()


def test_a_list_reaches_every_daemon_whose_folder_is_known(folder: PkiFolder, tmp_path: Path) -> None:
    second = PkiFolder(tmp_path / "second", folder.authority)
    second.initialize()
    authority = PkiFolder(folder.authority)
    authority.revoke("alice")
    assert authority.outdated_copies() == [folder.client_crl, second.client_crl]
    assert authority.copy_list() == [folder.path, second.path]
    assert as_daemon(folder).revoked() == as_daemon(second).revoked() == authority.revoked() != frozenset()
    shutil.rmtree(folder.path)
    second.client_ca.write_bytes(b"another authority's")
    second.client_crl.unlink()
    assert authority.copy_list() == []
    assert not second.client_crl.exists() and not folder.path.exists()


def test_a_second_daemon_takes_authorities_that_are_there(folder: PkiFolder, tmp_path: Path) -> None:
    folder.revoke("alice")
    second = PkiFolder(tmp_path / "second", folder.authority)
    with pytest.raises(AlreadyExists, match=r"prod\.example\.org: leave --trust-domain away"):
        second.initialize(trust_domain="another")
    second.initialize()
    assert second.client_ca.read_bytes() == folder.client_ca.read_bytes()
    assert as_daemon(second).revoked() == PkiFolder(folder.authority).revoked() != frozenset()


def test_an_authority_of_another_daemon_is_refused(folder: PkiFolder, tmp_path: Path) -> None:
    other = PkiFolder(tmp_path / "other")
    other.initialize()
    with pytest.raises(AuthorityDiffers, match=str(folder.client_ca)):
        as_daemon(folder).with_authority(other.path)


@pytest.mark.parametrize("within", [".", "authorities", "../daemon/a/b"])
def test_a_folder_within_the_daemons_is_refused(tmp_path: Path, within: str) -> None:
    path = tmp_path / "daemon"
    with pytest.raises(InvalidAuthority):
        PkiFolder(path, path / within).initialize()
    assert not path.exists()
    whole = PkiFolder(path)
    whole.initialize()
    with pytest.raises(InvalidAuthority):
        move_authority(whole, path / within)
    assert key_path(whole.client_ca).exists()


@pytest.fixture
def whole(tmp_path: Path) -> PkiFolder:
    """A folder with authorities, users, another daemon and a list."""
    folder = PkiFolder(tmp_path / "daemon")
    folder.initialize(users=["alice", "bob"])
    folder.issue_server("build2")
    folder.renew("alice")
    folder.revoke("bob")
    return folder


def check_moved(whole: PkiFolder, before: set[str], to: Path) -> None:
    assert names(whole.path) == PUBLIC | OWN | {"client-ca.crl"}
    assert names(to) == (before - OWN) | {"daemons"}
    folder = whole.with_authority()
    assert folder.authority == to
    folder.issue_client("carol")
    assert len(folder.revoke("alice")) == 2
    assert {path.stat().st_mode & 0o777 for path in to.rglob("*.key")} == {0o600}
    assert folder.client_inventory.stat().st_mode & 0o777 == 0o600


def test_moving_leaves_the_daemon_what_it_reads(whole: PkiFolder, tmp_path: Path) -> None:
    before, to = names(whole.path), tmp_path / "authority"
    move_authority(whole, to)
    check_moved(whole, before, to)
    with pytest.raises(Missing, match=r"client-ca\.key"):
        move_authority(whole, tmp_path / "again")


def test_a_move_that_was_interrupted_is_finished_by_the_next(
    whole: PkiFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is interrupted, each file is in one of the folders at least."""
    before, to = names(whole.path), tmp_path / "authority"
    steps, fsync, rename = 0, os.fsync, os.rename

    def count() -> None:
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise KeyboardInterrupt

    def counted_fsync(descriptor: int) -> None:
        count()
        fsync(descriptor)

    def counted_rename(source: Path, target: Path) -> None:
        count()
        rename(source, target)

    monkeypatch.setattr(os, "fsync", counted_fsync)
    monkeypatch.setattr(os, "rename", counted_rename)
    for step in range(1, 200, 7):
        steps = step
        try:
            move_authority(whole, to)
        except KeyboardInterrupt:
            assert before <= names(whole.path) | names(to)
        else:
            break
    steps = 10**6
    check_moved(whole, before, to)


def test_a_move_that_was_interrupted_while_it_removed_files_is_finished_by_the_next(
    whole: PkiFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, to, unlink = names(whole.path), tmp_path / "authority", Path.unlink
    left = 0

    def counted_unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if path.suffix != ".new":
            left -= 1
        if left < 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", counted_unlink)
    for number in range(100):
        left = number
        with contextlib.suppress(KeyboardInterrupt):
            move_authority(whole, to)
            break
    check_moved(whole, before, to)


def test_a_fifo_in_the_place_of_a_daemons_certificate_is_not_waited_for(folder: PkiFolder) -> None:
    """The daemon's account can put one there."""
    folder.revoke("alice")
    folder.client_ca.unlink()
    os.mkfifo(folder.client_ca)
    assert PkiFolder(folder.authority).copy_list() == []


def test_a_move_takes_along_which_daemons_there_are(whole: PkiFolder, tmp_path: Path) -> None:
    second = PkiFolder(tmp_path / "second", whole.path)
    second.initialize()
    move_authority(whole, tmp_path / "authority")
    folder = whole.with_authority()
    folder.revoke("alice")
    assert folder.copy_list() == [second.path, whole.path]


def test_a_move_replaces_no_other_authority(whole: PkiFolder, tmp_path: Path) -> None:
    other = PkiFolder(tmp_path / "other")
    other.initialize()
    before = names(whole.path)
    with pytest.raises(AlreadyExists, match="another authority's"):
        move_authority(whole, other.path)
    assert names(whole.path) == before
    shutil.rmtree(other.path)
    move_authority(whole, other.path)
