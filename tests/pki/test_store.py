"""The folder of an authority: what lies where, who may read it, and that nothing in it is ever overwritten."""

import os
import ssl
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pki.errors import AlreadyExists, InvalidHost, InvalidName, Missing, PkiError
from pki.files import key_path
from pki.store import DEFAULT_TRUST_DOMAIN, PkiFolder
from pki.tls import client_context, server_context

USER_ID = "123e4567-e89b-42d3-a456-426614174000"
FILES = {f"{name}.{kind}" for name in ("server-ca", "client-ca", "server") for kind in ("crt", "key")}


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority with one user."""
    folder = PkiFolder(tmp_path / "state" / "pki")
    folder.initialize()
    folder.issue_client("alice")
    return folder


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A process whose umask forbids nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def contents(folder: PkiFolder) -> dict[str, bytes]:
    """Read all files below a folder."""
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    """Read a file's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def read(certificate: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(certificate.read_bytes())


def names_in(certificate: Path) -> x509.SubjectAlternativeName:
    """Read the alternative names off a certificate."""
    return read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_files_lie_where_the_layout_says(folder: PkiFolder) -> None:
    assert contents(folder).keys() == FILES | {"clients/alice.crt", "clients/alice.key"}


def test_keys_are_for_their_owner_alone_and_folders_too(no_umask: None, tmp_path: Path) -> None:
    del no_umask
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize()
    folder.issue_client("alice")
    modes = {str(path.relative_to(folder.path)): mode(path) for path in folder.path.rglob("*")}
    assert {name for name, bits in modes.items() if bits == 0o600} == {n for n in modes if n.endswith(".key")}
    assert {name for name, bits in modes.items() if bits == 0o644} == {n for n in modes if n.endswith(".crt")}
    assert (modes["clients"], mode(folder.path)) == (0o700, 0o700)


def test_every_key_belongs_to_its_certificate(folder: PkiFolder) -> None:
    for certificate in folder.path.rglob("*.crt"):
        key = load_pem_private_key(key_path(certificate).read_bytes(), None)
        halves = (key.public_key(), read(certificate).public_key())
        first, second = (half.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for half in halves)
        assert first == second


def test_certificates_are_signed_by_the_authority_of_their_kind(folder: PkiFolder) -> None:
    server_ca, client_ca = read(folder.server_ca), read(folder.client_ca)
    read(folder.server_certificate).verify_directly_issued_by(server_ca)
    read(folder.client_certificate("alice")).verify_directly_issued_by(client_ca)
    assert server_ca.public_key() != client_ca.public_key()


def test_server_is_known_as_loopback_as_this_host_and_as_what_was_asked_for(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize(["build1.example.org", "192.0.2.7", "2001:db8::7", "localhost"])
    names = names_in(folder.server_certificate)
    dns = names.get_values_for_type(x509.DNSName)
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert set(dns) == {"localhost", os.uname().nodename, "build1.example.org"}
    assert len(dns) == len(set(dns))
    assert addresses == {"127.0.0.1", "::1", "192.0.2.7", "2001:db8::7"}


@pytest.mark.parametrize("trust_domain", [DEFAULT_TRUST_DOMAIN, "prod.example.org"])
def test_trust_domain_is_in_every_user_s_certificate(tmp_path: Path, trust_domain: str) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize(trust_domain=trust_domain)
    uris = names_in(folder.issue_client("alice", USER_ID)).get_values_for_type(x509.UniformResourceIdentifier)
    assert folder.trust_domain() == trust_domain
    assert uris == [f"spiffe://{trust_domain}/user/{USER_ID}"]


def test_every_new_user_gets_an_id_of_their_own(folder: PkiFolder) -> None:
    uris = [
        uri
        for name in ("bob", "carol")
        for uri in names_in(folder.issue_client(name)).get_values_for_type(x509.UniformResourceIdentifier)
    ]
    ids = {uuid.UUID(uri.rpartition("/")[2]) for uri in uris}
    assert len(ids) == 2
    assert {user_id.version for user_id in ids} == {4}


def test_users_are_listed_by_name(folder: PkiFolder) -> None:
    for name in ("zoe", "bob@example.org", "a.b"):
        folder.issue_client(name)
    assert folder.users() == ["a.b", "alice", "bob@example.org", "zoe"]


def test_folder_is_initialized_once_it_has_what_a_server_needs(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    assert (folder.is_initialized(), folder.users()) == (False, [])
    folder.initialize()
    assert (folder.is_initialized(), folder.users()) == (True, [])


@pytest.mark.parametrize("file", sorted(FILES))
def test_initialize_overwrites_nothing_and_leaves_nothing_half_made(tmp_path: Path, file: str) -> None:
    """Whichever file is there, also alone, is named, and stays alone."""
    folder = PkiFolder(tmp_path)
    (tmp_path / file).write_bytes(b"precious")
    with pytest.raises(AlreadyExists) as raised:
        folder.initialize()
    assert contents(folder) == {file: b"precious"}
    assert raised.value.path == tmp_path / file
    assert str(tmp_path / file) in str(raised.value)


def test_second_initialize_changes_nothing(folder: PkiFolder) -> None:
    before = contents(folder)
    with pytest.raises(AlreadyExists):
        folder.initialize()
    assert contents(folder) == before


@pytest.mark.parametrize("left", [("crt",), ("key",), ("crt", "key")], ids="+".join)
def test_issue_client_overwrites_nothing(folder: PkiFolder, left: tuple[str, ...]) -> None:
    certificate = folder.client_certificate("alice")
    for path in (certificate, key_path(certificate)):
        if path.suffix.removeprefix(".") not in left:
            path.unlink()
    before = contents(folder)
    with pytest.raises(AlreadyExists) as raised:
        folder.issue_client("alice", USER_ID)
    assert contents(folder) == before
    assert raised.value.path == certificate.with_suffix(f".{left[0]}")


def test_nothing_is_written_through_a_link(folder: PkiFolder, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    key_path(folder.client_certificate("bob")).symlink_to(target)
    with pytest.raises(AlreadyExists):
        folder.issue_client("bob")
    assert not target.exists()


def test_initialize_with_a_user_who_has_a_certificate_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "alice.key").write_bytes(b"precious")
    with pytest.raises(AlreadyExists) as raised:
        PkiFolder(tmp_path).initialize(users=["bob", "alice"])
    assert contents(PkiFolder(tmp_path)) == {"clients/alice.key": b"precious"}
    assert raised.value.path == tmp_path / "clients" / "alice.key"


def test_initialize_makes_the_users_it_is_told(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize(users=["bob", "alice"])
    assert folder.users() == ["alice", "bob"]


def test_second_initialize_says_that_nothing_needs_to_be_removed(folder: PkiFolder) -> None:
    with pytest.raises(AlreadyExists, match="nothing needs to be removed") as raised:
        folder.initialize(["build1"])
    assert f"workerctl --pki-dir {folder.path} pki issue-client NAME" in str(raised.value)


HOSTS = [
    "a",
    "build1",
    "build1.example.org",
    "3com",
    "A-b.c",
    "a_b",
    "*.example.org",
    "192.0.2.7",
    "::1",
    "xn--mnchen-3ya.example",
    "a" * 63,
]
NO_HOSTS = [
    *("", "a b", "https://build1:7005", "build1:7005", "build1/", "-a", "a-", "a..b", ".a", "a.", "a.*", "[::1]"),
    *("1.2.3", "300.1.1.1", "a\n", "*", "a" * 64, ".".join(["a" * 63] * 4)),
]


@pytest.mark.parametrize("host", HOSTS)
def test_host_name_or_address_is_taken(tmp_path: Path, host: str) -> None:
    PkiFolder(tmp_path).initialize([host])


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidHost) as raised:
        PkiFolder(tmp_path).initialize([host])
    assert repr(host) in str(raised.value)
    assert contents(PkiFolder(tmp_path)) == {}


INVALID_NAMES = [
    *(
        "",
        ".",
        "..",
        ".hidden",
        "-option",
        "a/b",
        "../alice",
        "/etc/passwd",
        "a b",
        "a\n",
        "a\0b",
        "ä",
        "\N{FULLWIDTH LATIN SMALL LETTER A}",
        "a" * 65,
    ),
    *("a\\b", "a:b", "*", "a\u202eb"),
]


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_name_that_could_lead_elsewhere_is_refused(folder: PkiFolder, name: str) -> None:
    before = contents(folder)
    with pytest.raises(InvalidName) as raised:
        folder.issue_client(name)
    assert repr(name) in str(raised.value)
    assert contents(folder) == before


@pytest.mark.parametrize("user_id", ["", "alice", USER_ID[:-1], f"{USER_ID}/a", f"{USER_ID}\n", "ü"])
def test_user_id_that_is_no_uuid_is_refused(folder: PkiFolder, user_id: str) -> None:
    before = contents(folder)
    with pytest.raises(PkiError, match="UUID"):
        folder.issue_client("bob", user_id)
    assert contents(folder) == before


@pytest.mark.parametrize("user_id", [USER_ID, USER_ID.upper(), USER_ID.replace("-", ""), f"{{{USER_ID}}}"])
def test_user_id_is_issued_in_the_form_that_daemons_take(folder: PkiFolder, user_id: str) -> None:
    (name,) = names_in(folder.issue_client("bob", user_id))
    assert name.value == f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID}"


@pytest.mark.parametrize(
    ("hosts", "trust_domain"), [(["münchen.example"], "a"), ([], "münchen"), ([], "a/b"), ([], "")]
)
def test_name_that_no_certificate_could_hold_is_refused(tmp_path: Path, hosts: list[str], trust_domain: str) -> None:
    folder = PkiFolder(tmp_path)
    with pytest.raises(PkiError, match="münchen" if hosts else "trust domain"):
        folder.initialize(hosts, trust_domain)
    assert contents(folder) == {}


@pytest.mark.parametrize("name", ["a", "A.b", "a-b", "_a", "@", "9", "a..b", "bob@example.org", "a" * 64])
def test_usual_name_is_taken(folder: PkiFolder, name: str) -> None:
    assert folder.issue_client(name) == folder.path / "clients" / f"{name}.crt"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # hypothesis's first texts take long
@given(st.text(max_size=70))
def test_certificate_of_any_name_lies_in_the_clients_folder(name: str) -> None:
    folder = PkiFolder(Path("/pki"))
    try:
        path = folder.client_certificate(name)
    except InvalidName:
        return
    assert os.path.normpath(path) == f"/pki/clients/{name}.crt"
    assert key_path(path) == Path(f"/pki/clients/{name}.key")


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
    assert str(path.with_suffix("")) in str(
        raised.value
    )  # a key that is damaged does not fit the certificate beside it


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
