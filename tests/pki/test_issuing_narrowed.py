"""Certificates with fewer rights: what they say, for which keys there are any, and that they work over TLS."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pki.authority import Credential, PrivateKey, make_authority
from pki.errors import AlreadyExists, CertificateExpired, InvalidNarrowing, InvalidRequest, IssuedInvalid, NotRenewable
from pki.files import key_path, load_pair
from pki.identity import MOST_ANCESTORS, Identity, read_identity
from pki.inventory import State, describe, serial_text
from pki.narrowing import fit, issue_narrowed, make_key, make_request, read_request
from pki.store import PkiFolder
from tests.pki.test_identity import peer_certificate

DOMAIN = "example.internal"
USER_ID = "123e4567-e89b-42d3-a456-426614174000"
NOW = datetime(2026, 3, 4, 5, 6, 7, 890_000, tzinfo=UTC)
DAY = timedelta(days=1)
HOLDER = Identity(USER_ID, "alice", DOMAIN, "0A1B", NOW.replace(microsecond=0) + DAY, not_before=NOW - DAY)
KINDS = ["p256", "ed25519"]


@pytest.fixture(scope="module")
def authority() -> Credential:
    return make_authority("the authority", DOMAIN)


def issue(
    authority: Credential,
    holder: Identity = HOLDER,
    rights: tuple[str, ...] = ("list", "stop"),
    lifetime: timedelta = timedelta(minutes=15),
    key: PrivateKey | None = None,
) -> x509.Certificate:
    public = (key or make_key("p256")).public_key()
    return issue_narrowed(authority, holder, public, rights, lifetime, NOW)


def uri_of(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    [uri] = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uri


@pytest.mark.parametrize("kind", KINDS)
def test_certificate_says_whose_it_is_what_it_is_good_for_and_where_it_comes_from(
    authority: Credential, kind: str
) -> None:
    key = make_key(kind)
    certificate = issue(authority, key=key)
    assert uri_of(certificate) == f"spiffe://{DOMAIN}/user/{USER_ID}/from/0A1B/only/list.stop"
    assert [name.value for name in certificate.subject] == ["alice"]
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(authority.certificate)


def test_certificate_is_used_as_a_user_s_and_signs_no_others(authority: Credential, tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize(users=["alice"])
    users = x509.load_pem_x509_certificate(folder.client_certificate("alice").read_bytes()).extensions
    narrowed = issue(authority).extensions
    for kind in (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage):
        both = [found.get_extension_for_class(kind) for found in (users, narrowed)]
        assert (both[0].value, both[0].critical) == (both[1].value, both[1].critical)
    assert {each.oid for each in users} == {each.oid for each in narrowed}


def test_chain_is_written_down_the_oldest_first(authority: Credential) -> None:
    holder = Identity(
        USER_ID, "alice", DOMAIN, "7F", NOW + DAY, frozenset({"list", "stop"}), ("0A1B", "0C"), not_before=NOW
    )
    assert uri_of(issue(authority, holder, ("stop",))).endswith("/from/0A1B.0C.7F/only/stop")


@pytest.mark.parametrize(
    ("lifetime", "not_after"),
    [
        (timedelta(seconds=1), NOW.replace(microsecond=0) + timedelta(seconds=1)),
        (timedelta(hours=1, microseconds=110_000), NOW.replace(microsecond=0) + timedelta(hours=1, seconds=1)),
        (DAY, HOLDER.expires_at),
        (timedelta(days=9999), HOLDER.expires_at),
        (timedelta.max, HOLDER.expires_at),
    ],
)
def test_it_ends_when_asked_and_with_the_holder_at_the_latest(
    authority: Credential, lifetime: timedelta, not_after: datetime
) -> None:
    assert issue(authority, lifetime=lifetime).not_valid_after_utc == not_after


@pytest.mark.parametrize(("age", "before"), [(DAY, timedelta(minutes=5)), (timedelta(minutes=1), timedelta(minutes=1))])
def test_it_begins_a_little_before_now_but_not_before_the_holder(
    authority: Credential, age: timedelta, before: timedelta
) -> None:
    holder = Identity(USER_ID, "alice", DOMAIN, "7F", NOW + DAY, not_before=NOW - age)
    assert issue(authority, holder).not_valid_before_utc == (NOW - before).replace(microsecond=0)


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(microseconds=999_999), -DAY, timedelta.min])
def test_nothing_is_issued_for_no_time(authority: Credential, lifetime: timedelta) -> None:
    with pytest.raises(InvalidNarrowing, match="less than a second"):
        issue(authority, lifetime=lifetime)


def test_nothing_is_issued_for_a_holder_that_has_expired(authority: Credential) -> None:
    with pytest.raises(CertificateExpired):
        issue(authority, Identity(USER_ID, "alice", DOMAIN, "7F", NOW))


def test_nothing_is_issued_that_the_holder_is_not_good_for(authority: Credential) -> None:
    holder = Identity(USER_ID, "alice", DOMAIN, "7F", NOW + DAY, frozenset({"list"}), ("0A1B",))
    with pytest.raises(InvalidNarrowing, match="not good for 'stop'"):
        issue(authority, holder, ("list", "stop"))


def test_chain_has_an_end(authority: Credential) -> None:
    ancestors = tuple(f"{number:02X}" for number in range(1, MOST_ANCESTORS))
    last = Identity(USER_ID, "alice", DOMAIN, "7F", NOW + DAY, frozenset({"list"}), ancestors)
    assert uri_of(issue(authority, last, ("list",))).count(".") == MOST_ANCESTORS - 1 + DOMAIN.count(".")
    beyond = Identity(USER_ID, "alice", DOMAIN, "7E", NOW + DAY, frozenset({"list"}), (*ancestors, "7F"))
    with pytest.raises(InvalidNarrowing, match="steps"):
        issue(authority, beyond, ("list",))


@pytest.mark.parametrize("kind", KINDS)
def test_key_of_a_request_is_read_and_nothing_else_of_it(kind: str) -> None:
    key = make_key(kind)
    assert read_request(make_request(key)) == key.public_key()


def test_what_a_request_says_of_its_sender_does_not_count(authority: Credential) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    claims = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/user/root")])
    request = builder.add_extension(claims, critical=False).sign(key, hashes.SHA256())
    certificate = issue_narrowed(
        authority, HOLDER, read_request(request.public_bytes(Encoding.DER)), ["list"], DAY, NOW
    )
    assert uri_of(certificate) == f"spiffe://{DOMAIN}/user/{USER_ID}/from/0A1B/only/list"
    assert [name.value for name in certificate.subject] == ["alice"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def request_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey) -> bytes:
    digest = None if isinstance(key, ed448.Ed448PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed448.Ed448PrivateKey.generate(),
    ],
    ids=["RSA", "P-384", "secp256k1", "Ed448"],
)
def test_keys_of_other_kinds_are_refused(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey,
) -> None:
    with pytest.raises(InvalidRequest, match=r"neither of P-256 nor of Ed25519"):
        read_request(request_of(key))


@pytest.mark.parametrize("kind", KINDS)
def test_request_with_another_s_key_is_refused(kind: str) -> None:
    """Whoever has seen somebody's public key does not have the private one."""
    own, other = (make_request(make_key(kind)) for _ in range(2))
    info = x509.load_der_x509_csr(own).tbs_certrequest_bytes
    foreign = x509.load_der_x509_csr(other)
    body = info + other[other.index(foreign.tbs_certrequest_bytes) + len(foreign.tbs_certrequest_bytes) :]
    mixed = b"\x30" + (bytes([0x81, len(body)]) if len(body) > 127 else bytes([len(body)])) + body
    assert x509.load_der_x509_csr(mixed).public_key() == x509.load_der_x509_csr(own).public_key()
    with pytest.raises(InvalidRequest, match="not signed with its own key"):
        read_request(mixed)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30\x00",
        make_request(make_key("p256")) + b"\0",
        x509.load_der_x509_csr(make_request(make_key("p256"))).public_bytes(Encoding.PEM),
        make_authority("x", DOMAIN).certificate.public_bytes(Encoding.DER),
        bytes(8192),
        make_request(make_key("ed25519")).replace(b"\x02\x01\x00", b"\x02\x01\x01", 1),
    ],
    ids=["empty", "empty sequence", "more after it", "PEM", "certificate", "zeros", "another version"],
)
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="no PKCS #10 in DER"):
        read_request(data)


def test_request_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(InvalidRequest, match="more than 8192 bytes"):
        read_request(bytes(8193))


_REQUESTS = {kind: make_request(make_key(kind)) for kind in KINDS}


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_request_that_is_altered_anywhere_is_refused(kind: str, data: st.DataObject) -> None:
    request = bytearray(_REQUESTS[kind])
    # Of no account, and not signed: how many bits behind the signature are unused (X.690 §8.6.2).
    unused_bits = len(request) - len(x509.load_der_x509_csr(_REQUESTS[kind]).signature) - 1
    at = data.draw(st.integers(0, len(request) - 1).filter(lambda at: at != unused_bits))
    request[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(InvalidRequest):
        read_request(bytes(request))


def test_certificate_that_comes_back_must_be_the_key_s(authority: Credential) -> None:
    key = make_key("ed25519")
    certificate = issue(authority, key=key)
    assert fit(key, certificate.public_bytes(Encoding.DER)).certificate == certificate
    with pytest.raises(IssuedInvalid, match="for another key"):
        fit(make_key("ed25519"), certificate.public_bytes(Encoding.DER))
    with pytest.raises(IssuedInvalid, match="no certificate"):
        fit(key, b"nonsense")


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority with one user."""
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize(trust_domain=DOMAIN)
    folder.issue_client("alice", USER_ID)
    return folder


def narrowed(folder: PkiFolder, guest: PkiFolder, kind: str = "p256") -> x509.Certificate:
    """Issue a narrowed certificate for the user of a folder, and lay it down in another."""
    holder = read_identity(peer_certificate(folder, "alice"), DOMAIN)
    key = make_key(kind)
    certificate = issue_narrowed(
        load_pair(folder.client_ca), holder, key.public_key(), ["list"], DAY, datetime.now(UTC)
    )
    guest.take_up("alice", fit(key, certificate.public_bytes(Encoding.DER)), folder.server_ca.read_bytes())
    return certificate


def move(guest: PkiFolder, folder: PkiFolder) -> None:
    """Put a narrowed pair beside those of the authority, as another user's."""
    certificate = guest.client_certificate("alice")
    for path in (certificate, key_path(certificate)):
        path.rename(folder.client_certificate("guest").with_suffix(path.suffix))


@pytest.mark.parametrize("kind", KINDS)
def test_certificate_works_over_tls_with_either_key(folder: PkiFolder, tmp_path: Path, kind: str) -> None:
    guest = PkiFolder(tmp_path / "guest")
    certificate = narrowed(folder, guest, kind)
    assert type(load_pair(guest.client_certificate("alice")).key).__name__ == type(make_key(kind)).__name__
    move(guest, folder)
    identity = read_identity(peer_certificate(folder, "guest"), DOMAIN)
    holder = read_identity(peer_certificate(folder, "alice"), DOMAIN)
    assert (identity.user_id, identity.name) == (holder.user_id, holder.name)
    assert (identity.rights, identity.ancestors) == (frozenset({"list"}), (holder.serial,))
    assert identity.serial == serial_text(certificate.serial_number)
    assert identity.spiffe_id == uri_of(certificate)


def test_revoked_narrowed_certificate_fails_the_handshake(folder: PkiFolder, tmp_path: Path) -> None:
    guest = PkiFolder(tmp_path / "guest")
    certificate = narrowed(folder, guest)
    move(guest, folder)
    folder.revoke(serial_text(certificate.serial_number))
    with pytest.raises(ssl.SSLError, match="revoked"):
        peer_certificate(folder, "guest")


def test_nothing_that_is_there_is_overwritten(folder: PkiFolder, tmp_path: Path) -> None:
    guest = PkiFolder(tmp_path / "guest")
    narrowed(folder, guest)
    before = guest.client_certificate("alice").read_bytes()
    with pytest.raises(AlreadyExists):
        narrowed(folder, guest)
    assert guest.client_certificate("alice").read_bytes() == before
    other = PkiFolder(tmp_path / "other")
    other.initialize()
    with pytest.raises(AlreadyExists, match=r"server-ca\.crt"):
        narrowed(folder, other)
    assert other.users() == []


def test_narrowed_certificate_is_not_renewed_into_a_full_one(folder: PkiFolder, tmp_path: Path) -> None:
    guest = PkiFolder(tmp_path / "guest")
    narrowed(folder, guest)
    move(guest, folder)
    with pytest.raises(NotRenewable, match="it is narrowed"):
        folder.renew("guest")


def test_inventory_tells_rights_and_descent_and_revocation_from_above(folder: PkiFolder, tmp_path: Path) -> None:
    certificate = narrowed(folder, PkiFolder(tmp_path / "guest"))
    alice = x509.load_pem_x509_certificate(folder.client_certificate("alice").read_bytes())
    described = describe(certificate, datetime.now(UTC))
    assert (described.rights, described.ancestors) == (("list",), (serial_text(alice.serial_number),))
    assert described.state is State.VALID
    assert describe(certificate, datetime.now(UTC), {alice.serial_number}).state is State.REVOKED
    assert describe(alice, datetime.now(UTC)).rights == ()


def test_ed25519_keys_are_read_as_files(tmp_path: Path, authority: Credential) -> None:
    key = make_key("ed25519")
    guest = PkiFolder(tmp_path)
    path = guest.take_up("alice", Credential(key, issue(authority, key=key)), b"anything")
    loaded = load_pair(path).key
    assert isinstance(loaded, ed25519.Ed25519PrivateKey)
    assert loaded.public_key() == key.public_key()
