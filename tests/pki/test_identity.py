"""Reading a user off a certificate: one that was issued here, and ones that somebody made up."""

import ssl
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pki.errors import IdentityInvalid
from pki.identity import Identity, read_identity, user_uri
from pki.store import PkiFolder
from pki.tls import client_context, server_context

# The first texts take long: hypothesis makes its table of all characters then.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DOMAIN = "example.internal"
USER_ID = "123e4567-e89b-42d3-a456-426614174000"
URI = f"spiffe://{DOMAIN}/user/{USER_ID}"
GOOD: dict[str, Any] = {
    "subject": ((("commonName", "alice"),),),
    "issuer": ((("commonName", "workerd client CA"),),),
    "version": 3,
    "serialNumber": "0A1B",
    "notBefore": "Jan  1 00:00:00 2026 GMT",
    "notAfter": "Jan  2 03:04:05 2027 GMT",
    "subjectAltName": (("URI", URI),),
}


def with_uris(*uris: str) -> dict[str, Any]:
    """A certificate that is good but for its URIs."""
    return GOOD | {"subjectAltName": tuple(("URI", uri) for uri in uris)}


def peer_certificate(folder: PkiFolder, user_name: str) -> dict[str, Any]:
    """Give what Python's TLS gives a server for a user's certificate, after a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(folder, user_name).wrap_bio(to_client, to_server, server_hostname="localhost")
    server = server_context(folder).wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    certificate: dict[str, Any] | None = server.getpeercert()
    assert certificate is not None
    return certificate


def test_identity_is_what_was_issued(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize(trust_domain=DOMAIN)
    issued = x509.load_pem_x509_certificate(folder.issue_client("alice", USER_ID).read_bytes())
    identity = read_identity(peer_certificate(folder, "alice"), DOMAIN)
    assert identity == Identity(
        user_id=USER_ID,
        name="alice",
        trust_domain=DOMAIN,
        serial=identity.serial,
        expires_at=issued.not_valid_after_utc,
        not_before=issued.not_valid_before_utc,
    )
    assert int(identity.serial, 16) == issued.serial_number
    assert identity.spiffe_id == URI


def test_identity_is_read_off_the_uri_and_the_common_name() -> None:
    expires_at = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    not_before = datetime(2026, 1, 1, tzinfo=UTC)
    whole = Identity(USER_ID, "alice", DOMAIN, "0A1B", expires_at, not_before=not_before)
    assert read_identity(GOOD, DOMAIN) == whole


def test_other_kinds_of_names_do_not_matter() -> None:
    names = (("DNS", "localhost"), ("URI", URI), ("IP Address", "127.0.0.1"), ("DirName", ((("commonName", "x"),),)))
    subject = ((("countryName", "AT"),), (("commonName", "alice"), ("emailAddress", "alice@example.org")))
    certificate = GOOD | {"subjectAltName": names, "subject": subject}
    assert read_identity(certificate, DOMAIN) == read_identity(GOOD, DOMAIN)


@unhurried
@given(st.uuids())
def test_any_uuid_is_read_back(user_id: uuid.UUID) -> None:
    identity = read_identity(with_uris(user_uri(DOMAIN, str(user_id))), DOMAIN)
    assert (identity.user_id, identity.spiffe_id) == (str(user_id), user_uri(DOMAIN, str(user_id)))


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe:",
        f"spiffe://{DOMAIN}",
        f"spiffe://{DOMAIN}/user/",
        f"spiffe://{DOMAIN}/user",
        f"spiffe://elsewhere/user/{USER_ID}",
        f"spiffe:///user/{USER_ID}",
        f"spiffe://{DOMAIN}.evil/user/{USER_ID}",
        f"spiffe://evil.{DOMAIN}/user/{USER_ID}",
        f"spiffe://{DOMAIN}:443/user/{USER_ID}",
        f"spiffe://root@{DOMAIN}/user/{USER_ID}",
        f"spiffe://{DOMAIN.upper()}/user/{USER_ID}",
        f"SPIFFE://{DOMAIN}/user/{USER_ID}",
        f"https://{DOMAIN}/user/{USER_ID}",
        f"spiffe://{DOMAIN}/host/{USER_ID}",
        f"spiffe://{DOMAIN}/user/user/{USER_ID}",
        f"spiffe://{DOMAIN}/x/user/{USER_ID}",
        f"spiffe://{DOMAIN}/user//{USER_ID}",
        f"spiffe://{DOMAIN}//user/{USER_ID}",
        f"spiffe://{DOMAIN}/user/../user/{USER_ID}",
        f"{URI}/",
        f"{URI}?",
        f"{URI}#",
        f"{URI}?a=b",
        f" {URI}",
        f"{URI}\n",
        f"{URI}\0",
        f"spiffe://{DOMAIN}/user/{USER_ID[:-1]}",
        f"spiffe://{DOMAIN}/user/{USER_ID.upper()}",
        f"spiffe://{DOMAIN}/user/{USER_ID.replace('-', '')}",
        f"spiffe://{DOMAIN}/user/{{{USER_ID}}}",
        f"spiffe://{DOMAIN}/user/urn:uuid:{USER_ID}",
        f"spiffe://{DOMAIN}/user/%31{USER_ID[1:]}",
        f"spiffe://{DOMAIN}/user/\N{FULLWIDTH DIGIT ONE}{USER_ID[1:]}",
        f"spiffe://[{DOMAIN}/user/{USER_ID}",
        f"spiffe://{DOMAIN}\N{FULLWIDTH SOLIDUS}x/user/{USER_ID}",
    ],
)
def test_uri_that_is_not_exactly_a_user_s_names_nobody(uri: str) -> None:
    with pytest.raises(IdentityInvalid, match="names no user of this daemon"):
        read_identity(with_uris(uri), DOMAIN)


@pytest.mark.parametrize("uris", [(), (URI, URI), (URI, f"spiffe://{DOMAIN}/user/{uuid.UUID(int=1)}"), (URI, "x:y")])
def test_user_has_exactly_one_uri(uris: tuple[str, ...]) -> None:
    with pytest.raises(IdentityInvalid, match=f"{len(uris)} URIs instead of one"):
        read_identity(with_uris(*uris), DOMAIN)


@pytest.mark.parametrize(
    "subject",
    [
        (),
        ((("countryName", "AT"),),),
        ((("commonName", "alice"),), (("commonName", "bob"),)),
        ((("commonName", "alice"), ("commonName", "bob")),),
    ],
)
def test_user_has_exactly_one_common_name(subject: Any) -> None:
    with pytest.raises(IdentityInvalid, match="common names instead of one"):
        read_identity(GOOD | {"subject": subject}, DOMAIN)


@pytest.mark.parametrize("missing", ["subject", "subjectAltName", "serialNumber", "notBefore", "notAfter"])
def test_certificate_without_a_part_names_nobody(missing: str) -> None:
    with pytest.raises(IdentityInvalid):
        read_identity({key: value for key, value in GOOD.items() if key != missing}, DOMAIN)


def test_empty_certificate_names_nobody() -> None:
    """What Python gives for a certificate that it has not verified (`ssl.SSLSocket.getpeercert`)."""
    with pytest.raises(IdentityInvalid):
        read_identity({}, DOMAIN)


def _times() -> st.SearchStrategy[str]:
    moments = st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(9999, 12, 31))
    return moments.map(lambda moment: moment.strftime("%b %e %H:%M:%S ") + f"{moment.year:04d} GMT")


_PARTS = st.sampled_from(
    [
        "spiffe",
        "https",
        ":",
        "/",
        "//",
        "user",
        DOMAIN,
        USER_ID,
        "@",
        "[",
        "]",
        "?",
        "#",
        "%2f",
        "..",
        "\0",
        "\n",
        "\uff0f",
    ]
)
_URIS = st.one_of(
    st.just(URI),
    st.text(max_size=80),
    st.lists(_PARTS | st.text(max_size=2), max_size=12).map("".join),
    st.tuples(st.integers(0, len(URI)), st.integers(0, 3), st.text(max_size=3)).map(
        lambda cut: URI[: cut[0]] + cut[2] + URI[cut[0] + cut[1] :]
    ),
)
_RELATIVE_NAMES = st.lists(st.tuples(st.sampled_from(["commonName", "countryName"]) | st.text(), st.text()), max_size=3)
_ALTERNATIVE_NAMES = st.one_of(
    st.tuples(st.just("URI"), _URIS),
    st.tuples(st.sampled_from(["DNS", "email", "IP Address", "Registered ID", "othername"]), st.text()),
    st.tuples(st.just("DirName"), _RELATIVE_NAMES.map(lambda name: (tuple(name),))),
)
_CERTIFICATES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "subject": st.just(GOOD["subject"]) | st.lists(_RELATIVE_NAMES.map(tuple), max_size=3).map(tuple),
        "subjectAltName": st.lists(_ALTERNATIVE_NAMES, max_size=3).map(tuple),
        "serialNumber": st.text("0123456789ABCDEF", min_size=1, max_size=40),
        "notBefore": _times() | st.text(max_size=30),
        "notAfter": _times() | st.text(max_size=30),
    },
)


@unhurried
@given(_CERTIFICATES)
@example(GOOD)
@example(with_uris("spiffe://["))
@example(GOOD | {"notAfter": "Bad time value"})
@example(GOOD | {"notAfter": "Dec 31 23:59:60 9999 GMT"})
def test_made_up_certificate_names_either_just_who_stands_in_it_or_nobody(certificate: dict[str, Any]) -> None:
    try:
        identity = read_identity(certificate, DOMAIN)
    except IdentityInvalid:
        return
    assert [value for kind, value in certificate["subjectAltName"] if kind == "URI"] == [identity.spiffe_id]
    assert identity.spiffe_id == user_uri(DOMAIN, str(uuid.UUID(identity.user_id)))
    assert [value for name in certificate["subject"] for kind, value in name if kind == "commonName"] == [identity.name]
    assert identity.serial == certificate["serialNumber"]
    assert identity.expires_at.utcoffset() == identity.not_before.utcoffset() == timedelta(0)


@unhurried
@given(_URIS)
def test_made_up_uri_names_either_just_who_stands_in_it_or_nobody(uri: str) -> None:
    try:
        identity = read_identity(with_uris(uri), DOMAIN)
    except IdentityInvalid:
        return
    assert (uri, str(uuid.UUID(identity.user_id))) == (identity.spiffe_id, identity.user_id)
