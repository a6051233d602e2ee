"""What the daemon demands of those who connect: real sockets, and mostly nothing of ours at the other end."""

import contextlib
import socket
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import ErrorDetail, ErrorReason, WhoAmIRequest, WorkerServiceStub

from pki.authority import Credential, issue_client
from pki.files import key_path, load_pair
from pki.store import DEFAULT_TRUST_DOMAIN, PkiFolder
from tests.certificates import REFUSED_CLIENTS, USER_ID, Issue, client_folder, issue_any
from tests.daemon import USER, Daemon
from workerctl.target import Target
from workerctl.transport import WorkerChannel

SECONDS = 20
SETTINGS = 4  # the type of the first frame that a server sends (RFC 9113 §3.4, §6.5)


def plain_context(daemon: Daemon, folder: PkiFolder | None) -> ssl.SSLContext:
    """Make a context of Python's, with nothing of ours in it but the certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(daemon.pki.server_ca)
    context.set_alpn_protocols(["h2"])
    if folder is not None:
        certificate = folder.client_certificate(USER)
        context.load_cert_chain(certificate, key_path(certificate))
    return context


@contextlib.contextmanager
def connection(daemon: Daemon, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Connect to a daemon."""
    with (
        socket.create_connection(("127.0.0.1", daemon.port), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connected,
    ):
        yield connected


def is_served(daemon: Daemon, context: ssl.SSLContext) -> bool:
    """Tell whether the daemon opens HTTP/2. In TLS 1.3 the client's part of the handshake cannot tell it yet."""
    try:
        with connection(daemon, context) as connected:
            head = connected.recv(9)
    except (ssl.SSLError, ConnectionError):
        return False
    assert head == b"" or head[3] == SETTINGS
    return head != b""


def test_client_with_a_good_certificate_is_served_over_tls_1_3(shared_daemon: Daemon) -> None:
    context = plain_context(shared_daemon, shared_daemon.pki)
    assert is_served(shared_daemon, context)
    with connection(shared_daemon, context) as connected:
        assert (connected.version(), connected.selected_alpn_protocol()) == ("TLSv1.3", "h2")


def test_client_without_a_certificate_is_refused(shared_daemon: Daemon) -> None:
    assert not is_served(shared_daemon, plain_context(shared_daemon, None))


@pytest.mark.parametrize("issue", REFUSED_CLIENTS)
def test_client_with_a_bad_certificate_is_refused(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path, issue: Issue
) -> None:
    folder = client_folder(shared_daemon, tmp_path, issue(authority))
    assert not is_served(shared_daemon, plain_context(shared_daemon, folder))


def test_the_daemon_s_own_certificate_makes_no_client(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = client_folder(shared_daemon, tmp_path, load_pair(shared_daemon.pki.server_certificate))
    assert not is_served(shared_daemon, plain_context(shared_daemon, folder))


def test_the_server_authority_makes_no_users(shared_daemon: Daemon, tmp_path: Path) -> None:
    credential = issue_client(load_pair(shared_daemon.pki.server_ca), USER, USER_ID)
    folder = client_folder(shared_daemon, tmp_path, credential)
    assert not is_served(shared_daemon, plain_context(shared_daemon, folder))


def test_tls_1_2_is_refused(shared_daemon: Daemon) -> None:
    context = plain_context(shared_daemon, shared_daemon.pki)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)), connection(shared_daemon, context):
        pass


def test_no_other_protocol_than_http_2_is_negotiated_or_answered(shared_daemon: Daemon) -> None:
    context = plain_context(shared_daemon, shared_daemon.pki)
    context.set_alpn_protocols(["http/1.1"])
    with connection(shared_daemon, context) as connected, contextlib.suppress(ssl.SSLError, ConnectionError):
        assert connected.selected_alpn_protocol() is None
        connected.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: connected.recv(65536), b""))  # to the end, which the daemon makes
        assert b"HTTP/1" not in answer


def test_http_2_is_agreed_on_among_other_protocols(shared_daemon: Daemon) -> None:
    context = plain_context(shared_daemon, shared_daemon.pki)
    context.set_alpn_protocols(["http/1.1", "h2"])
    with connection(shared_daemon, context) as connected:
        assert connected.selected_alpn_protocol() == "h2"


def spiffe(text: str) -> x509.UniformResourceIdentifier:
    """A URI in a certificate."""
    return x509.UniformResourceIdentifier(text)


NAMES_NOBODY: dict[str, list[x509.GeneralName]] = {
    "no name at all": [],
    "a host": [x509.DNSName("localhost")],
    "another trust domain": [spiffe(f"spiffe://elsewhere/user/{USER_ID}")],
    "no uuid": [spiffe(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER}")],
    "upper case": [spiffe(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID.upper()}")],
    "a longer path": [spiffe(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID}/admin")],
    "a query": [spiffe(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID}?a=b")],
    "no user": [spiffe(f"spiffe://{DEFAULT_TRUST_DOMAIN}/host/{USER_ID}")],
    "the web": [spiffe(f"https://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID}")],
    "no URI in truth": [spiffe("spiffe://[")],
    "two users": [spiffe(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{uuid.UUID(int=number)}") for number in (1, 2)],
}


@pytest.mark.parametrize("names", NAMES_NOBODY.values(), ids=NAMES_NOBODY.keys())
async def test_certificate_of_the_right_authority_that_names_no_user_is_unauthenticated(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path, names: list[x509.GeneralName]
) -> None:
    credential = issue_any(authority, USER, names, ExtendedKeyUsageOID.CLIENT_AUTH)
    target = Target(shared_daemon.endpoint, USER, client_folder(shared_daemon, tmp_path, credential).path)
    async with contextlib.aclosing(WorkerChannel(*target.resolve(), target.tls())) as channel:
        with pytest.raises(GRPCError) as raised:
            await WorkerServiceStub(channel).who_am_i(WhoAmIRequest())
    assert raised.value.status is Status.UNAUTHENTICATED
    assert raised.value.details == [ErrorDetail(reason=ErrorReason.IDENTITY_INVALID)]
