"""Names, hosts, ids and trust domains that people ask for: which are taken, and that others leave nothing behind."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pki.errors import InvalidHost, InvalidName, PkiError
from pki.files import key_path
from pki.store import DEFAULT_TRUST_DOMAIN, PkiFolder
from tests.pki.reading import contents, names_in

USER_ID = "123e4567-e89b-42d3-a456-426614174000"
HOSTS = [
    *("a", "build1", "build1.example.org", "3com", "A-b.c", "a_b", "*.example.org", "192.0.2.7", "::1"),
    *("xn--mnchen-3ya.example", "a" * 63),
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
    *("", ".", "..", ".hidden", "-option", "a/b", "../alice", "/etc/passwd", "a b", "a\n", "a\0b", "ä"),
    *("\N{FULLWIDTH LATIN SMALL LETTER A}", "a" * 65, "a\\b", "a:b", "*", "a\u202eb"),
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
