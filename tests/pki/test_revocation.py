"""The list of revoked certificates: who comes onto it, who stays, and that only the authority's own counts."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from pki.errors import Missing, NotRevocable
from pki.files import load_certificate
from pki.inventory import State, describe, serial_text
from pki.register import Revoked
from pki.store import PkiFolder
from pki.tls import server_context


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority with two users."""
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize(users=["alice", "bob"])
    return folder


def serial(folder: PkiFolder, name: str) -> int:
    return load_certificate(folder.certificate(name)).serial_number


def read(folder: PkiFolder) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(folder.client_crl.read_bytes())


def test_without_a_list_nobody_is_revoked(folder: PkiFolder) -> None:
    assert folder.revoked() == frozenset()


def test_user_s_certificates_are_revoked_with_those_that_were_renewed_and_no_other(folder: PkiFolder) -> None:
    old = serial(folder, "alice")
    folder.renew("alice")
    assert folder.revoke("alice").keys() == {old, serial(folder, "alice")}
    assert folder.revoked() == {old, serial(folder, "alice")}


def test_user_whose_name_begins_like_another_s_is_not_taken_for_them(folder: PkiFolder) -> None:
    folder.issue_client("alice-b")
    folder.renew("alice-b")
    folder.revoke("alice")
    assert folder.revoked() == {serial(folder, "alice")}


@pytest.mark.parametrize("form", ["{}", "{:x}", "{:X}"], ids=["as shown", "lower case", "upper case"])
def test_certificate_is_revoked_by_its_serial_number(folder: PkiFolder, form: str) -> None:
    number = serial(folder, "alice")
    text = serial_text(number) if form == "{}" else form.format(number)
    assert folder.revoke(text) == {number: Revoked(folder.certificate("alice"))}
    assert folder.revoked() == {number}


def test_certificate_that_is_not_here_is_revoked_by_its_whole_serial_number(folder: PkiFolder) -> None:
    number = serial(folder, "alice")
    folder.certificate("alice").unlink()
    spaced = ":".join(serial_text(number)[at : at + 2] for at in range(0, len(serial_text(number)), 2))
    assert folder.revoke(spaced) == {number: Revoked(None)}


@pytest.mark.parametrize("name", ["nobody", "dad", "", "server", "server-ca", "../alice"])
def test_what_names_no_user_is_refused(folder: PkiFolder, name: str) -> None:
    with pytest.raises(NotRevocable):
        folder.revoke(name)
    assert not folder.client_crl.exists()


def test_daemon_s_certificate_is_not_revoked(folder: PkiFolder) -> None:
    folder.issue_server("build1")
    for name in ("server", "server-ca", "servers/build1", serial_text(serial(folder, "server"))):
        with pytest.raises(NotRevocable, match="no user's"):
            folder.revoke(name)


def test_a_user_who_is_called_like_the_daemon_is_meant_with_the_folder_alone(folder: PkiFolder) -> None:
    folder.issue_client("server")
    with pytest.raises(NotRevocable, match="no user's"):
        folder.revoke("server")
    assert list(folder.revoke("clients/server")) == [serial(folder, "clients/server")]


def test_list_grows_and_forgets_nobody(folder: PkiFolder) -> None:
    folder.revoke("alice")
    first = read(folder)
    folder.revoke("bob")
    folder.revoke("alice")
    last = read(folder)
    assert folder.revoked() == {serial(folder, "alice"), serial(folder, "bob")}
    dates = [{each.serial_number: each.revocation_date_utc for each in crl} for crl in (first, last)]
    assert dates[0].items() <= dates[1].items()
    numbers = [crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for crl in (first, last)]
    assert numbers == [1, 3]


def test_list_is_signed_by_the_client_authority_and_holds_as_long_as_it(folder: PkiFolder) -> None:
    folder.revoke("alice")
    authority = load_certificate(folder.client_ca)
    assert read(folder).is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    assert read(folder).next_update_utc == authority.not_valid_after_utc
    assert folder.client_crl.stat().st_mode & 0o777 == 0o644


def test_revoked_certificate_is_described_as_that(folder: PkiFolder) -> None:
    folder.revoke("alice")
    states = {
        name: describe(load_certificate(folder.certificate(name)), datetime.now(UTC), folder.revoked()).state
        for name in ("alice", "bob", "server")
    }
    assert states == {"alice": State.REVOKED, "bob": State.VALID, "server": State.VALID}


@pytest.mark.parametrize("damage", ["nonsense", "another authority's", "a folder"])
def test_list_that_does_not_count_is_named_and_not_built_upon(folder: PkiFolder, tmp_path: Path, damage: str) -> None:
    match damage:
        case "nonsense":
            folder.client_crl.write_bytes(b"-----BEGIN X509 CRL-----\nnonsense\n-----END X509 CRL-----\n")
        case "another authority's":
            other = PkiFolder(tmp_path / "other")
            other.initialize(users=["alice"])
            other.revoke("alice")
            folder.client_crl.write_bytes(other.client_crl.read_bytes())
        case "a folder":
            folder.client_crl.mkdir()
    for act in (folder.revoked, lambda: folder.revoke("alice")):
        with pytest.raises(Missing, match=r"client-ca\.crl"):
            act()


def test_server_resumes_no_session(folder: PkiFolder) -> None:
    """What is resumed would be verified neither for its time nor against the list."""
    assert server_context(folder).num_tickets == 0
