"""An authority's folder in which something is missing or damaged: what is named, and what is advised."""

import errno
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from pki.errors import Missing, PkiError
from pki.files import key_path, load_certificate
from pki.store import PkiFolder
from pki.tls import client_context, server_context

ACTS: dict[str, Callable[[PkiFolder], object]] = {
    "server": server_context,
    "client": lambda folder: client_context(folder, "alice"),
    "issue": lambda folder: folder.issue_client("bob"),
    "domain": PkiFolder.trust_domain,
}
NEEDED = [
    ("server", "server.crt"),
    ("server", "server.key"),
    ("server", "client-ca.crt"),
    ("client", "clients/alice.crt"),
    ("client", "clients/alice.key"),
    ("client", "server-ca.crt"),
    ("issue", "client-ca.crt"),
    ("issue", "client-ca.key"),
    ("domain", "client-ca.crt"),
]


def test_without_an_authority_no_user_is_made(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    for act in (lambda: folder.issue_client("alice"), folder.trust_domain, lambda: server_context(folder)):
        with pytest.raises(Missing) as raised:
            act()
        assert raised.value.path.parent == tmp_path
        assert str(raised.value.path) in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_authority_with_another_kind_of_key_is_told_as_that(folder: PkiFolder) -> None:
    key = rsa.generate_private_key(65_537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key_path(folder.client_ca).write_bytes(pem)
    with pytest.raises(Missing, match="no elliptic-curve key"):
        folder.issue_client("bob")


def test_certificate_of_a_version_that_there_is_not_is_named(folder: PkiFolder) -> None:
    der = x509.load_pem_x509_certificate(folder.client_ca.read_bytes()).public_bytes(Encoding.DER)
    altered = der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)  # RFC 5280 §4.1.2.1
    folder.client_ca.write_text(ssl.DER_cert_to_PEM_cert(altered))
    with pytest.raises(Missing, match="no certificate that can be read"):
        folder.trust_domain()


@pytest.mark.parametrize(("act", "file"), NEEDED)
@pytest.mark.parametrize("damage", ["missing", "a folder", "empty", "nonsense"])
def test_file_that_cannot_be_read_is_named(folder: PkiFolder, act: str, file: str, damage: str) -> None:
    path = folder.path / file
    path.unlink()
    match damage:
        case "a folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "nonsense":
            path.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    with pytest.raises(PkiError) as raised:
        ACTS[act](folder)
    # Without its ending: of a damaged key it is told that the certificate beside it does not fit.
    assert str(path.with_suffix("")) in str(raised.value)


@pytest.mark.parametrize(
    ("act", "certificate"), [("server", "server.crt"), ("client", "clients/alice.crt"), ("issue", "client-ca.crt")]
)
def test_certificate_beside_another_s_key_is_named(folder: PkiFolder, act: str, certificate: str) -> None:
    path = folder.path / certificate
    key_path(path).write_bytes(key_path(folder.issue_client("bob")).read_bytes())
    (folder.path / "clients" / "bob.crt").unlink()
    key_path(folder.client_certificate("bob")).unlink()
    with pytest.raises(PkiError, match="does not fit its key") as raised:
        ACTS[act](folder)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("act", "file"), [(act, file) for act, file in NEEDED if file.endswith(".key")])
def test_advice_for_a_missing_key_is_to_bring_it(folder: PkiFolder, act: str, file: str) -> None:
    """And not to make an authority, which would be refused because the rest of it is there."""
    path = folder.path / file
    path.unlink()
    with pytest.raises(Missing, match="No such file") as raised:
        ACTS[act](folder)
    assert path.with_suffix(".crt").name in str(raised.value)
    assert "pki init" not in str(raised.value)


@pytest.mark.parametrize("act", ["server", "client"])
def test_damaged_key_is_not_said_to_belong_to_another(folder: PkiFolder, act: str) -> None:
    path = folder.path / ("server.key" if act == "server" else "clients/alice.key")
    path.write_bytes(b"junk")
    with pytest.raises(Missing, match=f"damaged, or {path.name} beside it is"):
        ACTS[act](folder)


@pytest.mark.parametrize("act", ["server", "client"])
def test_encrypted_key_is_refused_and_its_pass_phrase_is_not_asked_for(folder: PkiFolder, act: str) -> None:
    path = folder.path / ("server.key" if act == "server" else "clients/alice.key")
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(Missing, match=f"{path.name}: it is encrypted: put one there that is not, as `openssl pkey`"):
        ACTS[act](folder)


@pytest.mark.parametrize("act", ["server", "client"])
def test_pair_that_cannot_be_opened_for_want_of_something_is_not_said_to_be_damaged(
    folder: PkiFolder, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", fail)
    with pytest.raises(Missing, match=r"key beside it, cannot be read: Too many open files") as raised:
        ACTS[act](folder)
    assert isinstance(raised.value.__cause__, OSError)


def test_authority_that_can_sign_no_list_is_an_error_like_others(folder: PkiFolder) -> None:
    folder.revoke("alice")
    authority = load_certificate(folder.client_ca)
    other = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder(authority.issuer, authority.subject, x25519.X25519PrivateKey.generate().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(authority.not_valid_before_utc)
        .not_valid_after(authority.not_valid_after_utc)
    )
    folder.client_ca.write_bytes(builder.sign(other, hashes.SHA256()).public_bytes(Encoding.PEM))
    with pytest.raises(Missing, match="no list of revoked certificates that can be read"):
        folder.revoked()


def test_user_without_a_certificate_is_told_what_to_do(folder: PkiFolder, tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(Missing) as raised:
            client_context(PkiFolder(path), "bob")
        return str(raised.value)

    advice = "choose with --username or --pki-dir, or add --certificate alice to present alice's, whomever you call for"
    assert f"has certificates for alice; {advice}" in told(folder.path)
    (folder.path / "clients" / "alice.crt").unlink()
    assert f"make one with `workerctl --pki-dir {folder.path} pki issue-client bob`" in told(folder.path)
    key_path(folder.client_ca).unlink()
    assert "no certificate for any user; copy yours" in told(folder.path)
    assert f"there is no folder {tmp_path / 'none'}" in told(tmp_path / "none")


@pytest.mark.parametrize("file", ["server.crt", "clients/alice.crt"], ids=["no URI", "a user's URI"])
def test_authority_without_a_trust_domain_is_named(folder: PkiFolder, file: str) -> None:
    folder.client_ca.write_bytes((folder.path / file).read_bytes())
    with pytest.raises(PkiError, match="trust domain") as raised:
        folder.trust_domain()
    assert str(folder.client_ca) in str(raised.value)
