"""Renewing certificates: the same user or host with a new key, the old pair kept, and a whole pair at every moment."""

import contextlib
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from pki import files
from pki.errors import AlreadyExists, InvalidHost, InvalidLifetime, InvalidName, Missing, NotRenewable
from pki.files import key_path, load_certificate, load_pair, new_certificate_path, new_key_path, replace_pair
from pki.identity import EXPIRES_SOON
from pki.inventory import Description, Purpose, State, describe, names_in
from pki.store import PkiFolder
from pki.tls import client_context, server_context
from tests.waiting import wait_until

USER_ID = "123e4567-e89b-42d3-a456-426614174000"


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority with one user."""
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize(["build1.example.org"])
    folder.issue_client("alice", USER_ID)
    return folder


def described(path: Path, later: timedelta = timedelta()) -> Description:
    """Describe a certificate as it will be."""
    return describe(load_certificate(path), datetime.now(UTC) + later)


def kept(path: Path) -> list[Path]:
    """The certificates that were kept when one was renewed."""
    return sorted((path.parent / "replaced").glob(f"{path.stem}-*.crt"))


@pytest.mark.parametrize("name", ["alice", "clients/alice", "server", "servers/build2"])
def test_renewed_pair_is_for_the_same_with_another_key_and_the_old_is_kept(folder: PkiFolder, name: str) -> None:
    folder.issue_server("build2", ["192.0.2.7"])
    path = folder.certificate(name)
    before = (path.read_bytes(), key_path(path).read_bytes())
    old = load_pair(path)
    assert folder.renew(name) == path
    new = load_pair(path)
    assert names_in(new.certificate) == names_in(old.certificate)
    assert new.certificate.subject == old.certificate.subject
    assert new.certificate.serial_number != old.certificate.serial_number
    assert new.certificate.public_key() != old.certificate.public_key()
    [aside] = kept(path)
    assert (aside.read_bytes(), key_path(aside).read_bytes()) == before
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (key_path(path), key_path(aside), path, aside.parent)]
    assert modes == [0o600, 0o600, 0o644, 0o700]


def test_every_renewal_keeps_what_it_replaces(folder: PkiFolder) -> None:
    path = folder.certificate("alice")
    serials = [load_certificate(folder.renew("alice")).serial_number for _ in range(3)]
    aside = [load_certificate(each).serial_number for each in kept(path)]
    assert len(aside) == 3
    assert aside[1:] == serials[:2]
    assert folder.users() == ["alice"]


def test_renewal_adds_names_to_a_server(folder: PkiFolder) -> None:
    before = described(folder.server_certificate).hosts
    folder.renew("server", ["build9", "localhost", "192.0.2.9"])
    assert set(described(folder.server_certificate).hosts) == {*before, "build9", "192.0.2.9"}


def test_renewed_pairs_shake_hands(folder: PkiFolder) -> None:
    folder.renew("alice")
    folder.renew("server")
    assert shake_hands(server_context(folder), client_context(folder, "alice"))


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    """Carry a handshake through in memory, and raise what it fails with."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
    ]
    for _ in range(4):
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    return not ends


@pytest.mark.parametrize("name", ["server-ca", "client-ca"])
def test_authority_is_not_renewed(folder: PkiFolder, name: str) -> None:
    with pytest.raises(NotRenewable, match="authority"):
        folder.renew(name)


def test_user_of_another_trust_domain_is_not_renewed(folder: PkiFolder, tmp_path: Path) -> None:
    other = PkiFolder(tmp_path / "other")
    other.initialize(trust_domain="elsewhere")
    path = folder.certificate("alice")
    before = path.read_bytes()
    for authority in (folder.client_ca, key_path(folder.client_ca)):
        authority.write_bytes((other.path / authority.name).read_bytes())
    with pytest.raises(NotRenewable, match=r"spiffe://workerd\.internal"):
        folder.renew("alice")
    assert path.read_bytes() == before


def test_hosts_are_for_servers(folder: PkiFolder) -> None:
    with pytest.raises(NotRenewable, match="no hosts"):
        folder.renew("alice", ["build9"])


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda folder: folder.renew("nobody"), Missing),
        (lambda folder: folder.renew("../alice"), InvalidName),
        (lambda folder: folder.renew("clients/../server"), InvalidName),
        (lambda folder: folder.renew("servers/../server"), InvalidName),
        (lambda folder: folder.renew("server", ["a b"]), InvalidHost),
        (lambda folder: folder.renew("server", days=0), InvalidLifetime),
        (lambda folder: folder.issue_client("bob", days=3651), InvalidLifetime),
        (lambda folder: folder.issue_server("a b"), InvalidHost),
        (lambda folder: folder.issue_server("build2", ["a b"]), InvalidHost),
        (lambda folder: folder.issue_server("*.example.org"), InvalidName),
    ],
)
def test_what_cannot_be_issued_changes_nothing(
    folder: PkiFolder, act: Callable[[PkiFolder], object], error: type[Exception]
) -> None:
    before = {path: path.read_bytes() for path in folder.path.rglob("*.*")}
    with pytest.raises(error):
        act(folder)
    assert {path: path.read_bytes() for path in folder.path.rglob("*.*")} == before


def test_server_elsewhere_gets_a_pair_of_its_own_once(folder: PkiFolder) -> None:
    path = folder.issue_server("build2", ["192.0.2.7", "build2"])
    assert path == folder.path / "servers" / "build2.crt"
    assert described(path).hosts == ("build2", "192.0.2.7")
    load_pair(path).certificate.verify_directly_issued_by(load_certificate(folder.server_ca))
    with pytest.raises(AlreadyExists, match="pki renew servers/build2"):
        folder.issue_server("build2")


@pytest.mark.parametrize("days", [1, 30])
def test_certificate_holds_for_as_many_days_as_are_asked_for(folder: PkiFolder, days: int) -> None:
    for path in (folder.issue_client("bob", days=days), folder.renew("server", days=days)):
        left = described(path).not_after - datetime.now(UTC)
        assert timedelta(days=days) - timedelta(minutes=1) < left <= timedelta(days=days)


@pytest.mark.parametrize("renamed", [0, 1, 2])
@pytest.mark.parametrize("name", ["alice", "server"])
def test_renewal_that_is_cut_off_leaves_a_whole_pair_and_the_next_goes_through(
    folder: PkiFolder, monkeypatch: pytest.MonkeyPatch, name: str, renamed: int
) -> None:
    """Whatever of it was done, client and daemon read a pair, and what is kept aside fits."""
    path = folder.certificate(name)
    rename, left = Path.rename, [renamed]

    def rename_some(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_some)
    if renamed == 2:
        folder.renew(name)
    else:
        with pytest.raises(KeyboardInterrupt):
            folder.renew(name)
    monkeypatch.undo()
    assert shake_hands(server_context(folder), client_context(folder, "alice"))
    interrupted = load_certificate(path)
    folder.renew(name)
    load_pair(path)
    assert not new_key_path(path).exists() and not new_certificate_path(path).exists()
    for each in kept(path):
        load_pair(each)
    assert interrupted in [load_certificate(each) for each in kept(path)]


def test_key_that_was_exchanged_by_hand_is_not_taken_for_a_renewal_that_was_cut_off(folder: PkiFolder) -> None:
    path = folder.certificate("alice")
    key_path(path).write_bytes(key_path(folder.issue_client("bob")).read_bytes())
    new_key_path(path).touch(0o600)
    new_key_path(path).write_bytes(b"nonsense")
    before = {each: each.read_bytes() for each in folder.path.rglob("*.*") if each != folder.client_inventory}
    with pytest.raises(Missing):
        folder.renew("alice")
    now = {each: each.read_bytes() for each in folder.path.rglob("*.*") if each != folder.client_inventory}
    assert now == before


def test_pair_that_is_replaced_while_it_is_read_is_read_as_a_whole(
    folder: PkiFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has seen the old certificate, and finds the new key."""
    load = ssl.SSLContext.load_cert_chain
    tries = 0

    def load_late(self: ssl.SSLContext, certificate: Path, key: Path, password: Callable[[], bytes]) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            old = certificate.with_name("old")
            old.write_bytes(certificate.read_bytes())
            folder.renew("alice")
            certificate = old
        load(self, certificate, key, password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_late)
    client = client_context(folder, "alice")
    assert tries == 3
    monkeypatch.undo()
    assert shake_hands(server_context(folder), client)


def test_two_renewals_at_a_time_wait_for_each_other(folder: PkiFolder) -> None:
    command = [sys.executable, "-m", "workerctl", "--pki-dir", str(folder.path), "pki", "renew", "alice"]
    path = folder.certificate("alice")
    with files.locked(folder.client_ca):
        second = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: key_path(folder.client_ca) in open_files(second.pid), "the second did not wait")
        replace_pair(path, load_pair(path))
    assert second.wait(30) == 0
    assert len(kept(path)) == 2


def open_files(pid: int) -> set[Path]:
    """Return the files that a process has open; it waits for the lock on one with it open."""
    with contextlib.suppress(FileNotFoundError):  # one was closed meanwhile
        return {path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()}
    return set()


STATES = [
    (timedelta(minutes=-10), State.NOT_YET_VALID),
    (timedelta(), State.VALID),
    (timedelta(days=30) - EXPIRES_SOON - timedelta(minutes=1), State.VALID),
    (timedelta(days=30) - EXPIRES_SOON + timedelta(minutes=1), State.EXPIRES_SOON),
    (timedelta(days=30, minutes=1), State.EXPIRED),
]


@pytest.mark.parametrize(("later", "state"), STATES)
def test_state_is_that_of_the_time(folder: PkiFolder, later: timedelta, state: State) -> None:
    assert described(folder.issue_client("bob", days=30), later).state is state


def test_certificates_are_described_by_what_they_say(folder: PkiFolder) -> None:
    folder.issue_server("build2")
    folder.renew("alice")
    found = {path: described(path) for path in folder.certificates()}
    purposes = {str(path.relative_to(folder.path)): each.purpose for path, each in found.items()}
    [aside] = kept(folder.certificate("alice"))
    assert list(purposes.items()) == [
        ("server-ca.crt", Purpose.AUTHORITY),
        ("client-ca.crt", Purpose.AUTHORITY),
        ("server.crt", Purpose.SERVER),
        ("servers/build2.crt", Purpose.SERVER),
        ("clients/alice.crt", Purpose.CLIENT),
        (f"clients/replaced/{aside.name}", Purpose.CLIENT),
    ]
    alice = found[folder.certificate("alice")]
    assert (alice.subject, alice.spiffe_id) == ("alice", f"spiffe://workerd.internal/user/{USER_ID}")
    serial = x509.load_pem_x509_certificate(folder.certificate("alice").read_bytes()).serial_number
    assert int(alice.serial, 16) == serial and len(alice.serial) % 2 == 0
