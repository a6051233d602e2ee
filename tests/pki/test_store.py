"""The folder of an authority: what lies where, who may read it, and that nothing in it is ever overwritten."""

import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from pki.errors import AlreadyExists
from pki.files import key_path
from pki.store import DEFAULT_TRUST_DOMAIN, PkiFolder
from tests.pki.reading import contents, names_in, read

USER_ID = "123e4567-e89b-42d3-a456-426614174000"
FILES = {f"{name}.{kind}" for name in ("server-ca", "client-ca", "server") for kind in ("crt", "key")}
INVENTORY = "client-ca.issued.jsonl"


@pytest.fixture
def no_umask() -> Iterator[None]:
    """A process whose umask forbids nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Read a file's permissions."""
    return stat.S_IMODE(path.stat().st_mode)


def test_files_lie_where_the_layout_says(folder: PkiFolder) -> None:
    assert contents(folder).keys() == FILES | {INVENTORY, "clients/alice.crt", "clients/alice.key"}


def test_keys_are_for_their_owner_alone_and_folders_too(no_umask: None, tmp_path: Path) -> None:
    del no_umask
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize()
    folder.issue_client("alice")
    modes = {str(path.relative_to(folder.path)): mode(path) for path in folder.path.rglob("*")}
    assert {name for name, bits in modes.items() if bits == 0o600} == {
        n for n in modes if n.endswith(".key") or n == INVENTORY
    }
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
