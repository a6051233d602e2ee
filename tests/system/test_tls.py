"""Who may talk to whom: real sockets, with Python's own TLS on one end and ours on the other.

One file, though a long one: both directions are tried with the same certificates, which are made in its first half.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import ErrorDetail, ErrorReason, SpawnRequest, WhoAmIRequest, WorkerServiceStub

from pki.authority import Credential, issue_client, issue_server, make_authority
from pki.files import key_path
from pki.store import DEFAULT_TRUST_DOMAIN, PkiFolder
from tests.daemon import USER, Daemon
from workerctl.client import Client
from workerctl.events import Output
from workerctl.target import Target
from workerctl.transport import WorkerChannel

FAILED = 125
SECONDS = 20
USER_ID = "123e4567-e89b-42d3-a456-426614174000"
EXPIRED = timedelta(minutes=-1)
SETTINGS = 4  # the type of the first frame that a server sends (RFC 9113 §3.4, §6.5)
Issue = Callable[[Credential], Credential]


def load(certificate: Path) -> Credential:
    """Read a certificate with its key."""
    key = load_pem_private_key(key_path(certificate).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Credential(key, x509.load_pem_x509_certificate(certificate.read_bytes()))


def save(certificate: Path, credential: Credential) -> None:
    """Write a certificate with its key."""
    certificate.parent.mkdir(parents=True, exist_ok=True)
    certificate.write_bytes(credential.certificate_pem())
    key_path(certificate).write_bytes(credential.key_pem())


def issue_any(
    authority: Credential, common_name: str, names: list[x509.GeneralName], usage: x509.ObjectIdentifier
) -> Credential:
    """Issue a certificate that `pki.authority` would not."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Credential(key, builder.sign(authority.key, hashes.SHA256()))


def client_folder(daemon: Daemon, path: Path, credential: Credential) -> PkiFolder:
    """Make the folder of a user who trusts the daemon and presents some certificate."""
    folder = PkiFolder(path)
    save(folder.client_certificate(USER), credential)
    shutil.copy(daemon.pki.server_ca, folder.server_ca)
    return folder


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


def one_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """See that workerctl failed with one line, and give it."""
    text = result.stderr.decode()
    assert (result.returncode, result.stdout, text.count("\n")) == (FAILED, b"", 1), text
    assert text.startswith("workerctl: ")
    assert "Traceback" not in text
    return text


def workerctl(endpoint: str, folder: PkiFolder, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run workerctl with some folder of certificates."""
    options = ("--endpoint", endpoint, "--username", USER, "--pki-dir", str(folder.path))
    command = [sys.executable, "-m", "workerctl", *options, *(arguments or ("whoami",))]
    return subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)


@contextlib.contextmanager
def one_after_another(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """Answer connections to a loopback port in some way, and give the endpoint."""

    def serve() -> None:
        while True:
            try:
                connected, _ = listening.accept()
            except OSError:
                return
            with connected:
                answer(connected)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://localhost:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # wakes accept(2)
            thread.join()


@contextlib.contextmanager
def tls_server(credential: Credential, path: Path, version: ssl.TLSVersion | None = None) -> Iterator[str]:
    """Serve nothing but handshakes on a loopback port, and give the endpoint."""
    save(path / "stranger.crt", credential)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "stranger.crt", path / "stranger.key")
    context.set_alpn_protocols(["h2"])
    if version is not None:
        context.maximum_version = version

    def shake_hands(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connected:
            connected.recv(1)

    with one_after_another(shake_hands) as endpoint:
        yield endpoint


def expired(authority: Credential) -> Credential:
    """A certificate of the right authority that was good until a minute ago."""
    return issue_client(authority, USER, USER_ID, EXPIRED)


def of_another_authority(authority: Credential) -> Credential:
    """A certificate of an authority that bears the same name as the right one, and has another key."""
    del authority
    return issue_client(make_authority("workerd client CA", DEFAULT_TRUST_DOMAIN), USER, USER_ID)


def for_servers(authority: Credential) -> Credential:
    """A user's certificate of the right authority in all but its extended key usage."""
    uri = x509.UniformResourceIdentifier(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID}")
    return issue_any(authority, USER, [uri], ExtendedKeyUsageOID.SERVER_AUTH)


REFUSED: list[Issue] = [expired, of_another_authority, for_servers]


@pytest.fixture
def authority(shared_daemon: Daemon) -> Credential:
    """The authority that signs the users of the module's daemon."""
    return load(shared_daemon.pki.client_ca)


def test_client_with_a_good_certificate_is_served_over_tls_1_3(shared_daemon: Daemon) -> None:
    context = plain_context(shared_daemon, shared_daemon.pki)
    assert is_served(shared_daemon, context)
    with connection(shared_daemon, context) as connected:
        assert (connected.version(), connected.selected_alpn_protocol()) == ("TLSv1.3", "h2")


def test_client_without_a_certificate_is_refused(shared_daemon: Daemon) -> None:
    assert not is_served(shared_daemon, plain_context(shared_daemon, None))


@pytest.mark.parametrize("issue", REFUSED)
def test_client_with_a_bad_certificate_is_refused(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path, issue: Issue
) -> None:
    folder = client_folder(shared_daemon, tmp_path, issue(authority))
    assert not is_served(shared_daemon, plain_context(shared_daemon, folder))


@pytest.mark.parametrize("issue", REFUSED)
def test_workerctl_says_that_its_certificate_is_refused(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path, issue: Issue
) -> None:
    folder = client_folder(shared_daemon, tmp_path, issue(authority))
    line = one_line(workerctl(shared_daemon.endpoint, folder))
    assert shared_daemon.endpoint in line
    assert "certificate" in line


def test_the_daemon_s_own_certificate_makes_no_client(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = client_folder(shared_daemon, tmp_path, load(shared_daemon.pki.server_certificate))
    assert not is_served(shared_daemon, plain_context(shared_daemon, folder))
    assert "certificate" in one_line(workerctl(shared_daemon.endpoint, folder))


def test_the_server_authority_makes_no_users(shared_daemon: Daemon, tmp_path: Path) -> None:
    credential = issue_client(load(shared_daemon.pki.server_ca), USER, USER_ID)
    folder = client_folder(shared_daemon, tmp_path, credential)
    assert not is_served(shared_daemon, plain_context(shared_daemon, folder))


def test_workerctl_without_a_certificate_says_which_file_it_misses(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    shutil.copy(shared_daemon.pki.server_ca, folder.server_ca)
    assert str(folder.client_certificate(USER)) in one_line(workerctl(shared_daemon.endpoint, folder))


def test_workerctl_with_another_s_key_says_that_it_does_not_fit(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path
) -> None:
    folder = client_folder(shared_daemon, tmp_path, issue_client(authority, USER, USER_ID))
    key_path(folder.client_certificate(USER)).write_bytes(issue_client(authority, USER, USER_ID).key_pem())
    line = one_line(workerctl(shared_daemon.endpoint, folder))
    assert str(folder.client_certificate(USER)) in line
    assert "key" in line


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


def test_client_refuses_a_server_of_another_authority(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize()
    folder.issue_client(USER)
    line = one_line(workerctl(shared_daemon.endpoint, folder))
    assert shared_daemon.endpoint in line
    assert "its certificate does not hold" in line
    assert "--pki-dir" in line


def test_refused_server_is_not_asked_again_for_a_log(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize()
    folder.issue_client(USER)
    result = workerctl(shared_daemon.endpoint, folder, "stream-log", "--past-events", "--uuid", USER_ID)
    assert "its certificate does not hold" in one_line(result)


def test_refused_client_does_not_ask_again_for_a_log(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path
) -> None:
    folder = client_folder(shared_daemon, tmp_path, expired(authority))
    result = workerctl(shared_daemon.endpoint, folder, "stream-log", "--past-events", "--uuid", USER_ID)
    assert "certificate" in one_line(result)


class Cutter:
    """A wire to a daemon that is cut: the first connection on demand, the second as the client ends its handshake.

    The second dies where a refused certificate ends a connection, after the client's handshake, but without an alert.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._port = daemon.port
        self._first: asyncio.StreamWriter | None = None
        self.connections = 0

    def cut(self) -> None:
        """Cut the first connection."""
        assert self._first is not None
        self._first.transport.abort()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        number = self.connections
        if number == 1:
            self._first = writer
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        if number == 2:
            ours.write(await reader.read(65536))
            writer.write(await theirs.read(65536))
            await reader.read(65536)
        else:
            with contextlib.suppress(ConnectionError):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass_on(reader, ours))
                    tasks.create_task(self._pass_on(theirs, writer))
        for end in (writer, ours):
            end.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()


async def test_follower_that_was_served_once_takes_no_cut_for_a_refusal(shared_daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    cutter = Cutter(shared_daemon)
    said: list[bytes] = []
    async with await asyncio.start_server(cutter.connect, "127.0.0.1", 0) as server:
        endpoint = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        async with shared_daemon.client() as direct, Client(Target(endpoint, USER, shared_daemon.pki.path)) as client:
            job_id = await direct.spawn(
                SpawnRequest(program="sh", args=["-c", f"echo before; read line <{gate}; echo after"])
            )
            async with contextlib.aclosing(client.stream_log(job_id)) as events:
                async for event in events:
                    if not isinstance(event, Output):
                        continue
                    said.append(event.data)
                    if event.data == b"before\n":
                        cutter.cut()
                        await asyncio.to_thread(gate.write_text, "go\n")
    assert (said, cutter.connections) == ([b"before\n", b"after\n"], 3)


def test_client_takes_a_server_of_its_authority(shared_daemon: Daemon, tmp_path: Path) -> None:
    """The counter-test of the ones below: what fails there is not the server that they are made of."""
    credential = issue_server(load(shared_daemon.pki.server_ca), ["localhost"])
    with tls_server(credential, tmp_path) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert "certificate does not hold" not in line
    assert "TLS" not in line


def client_certificate(authority: Credential) -> Credential:
    """A certificate for users, of the authority and for the host that a server's would be."""
    return issue_any(authority, "localhost", [x509.DNSName("localhost")], ExtendedKeyUsageOID.CLIENT_AUTH)


def expired_server(authority: Credential) -> Credential:
    """A server's certificate that was good until a minute ago."""
    return issue_server(authority, ["localhost"], EXPIRED)


def of_another_host(authority: Credential) -> Credential:
    """A server's certificate for another host, which has the right one in its common name only."""
    return issue_any(authority, "localhost", [x509.DNSName("elsewhere")], ExtendedKeyUsageOID.SERVER_AUTH)


@pytest.mark.parametrize("issue", [client_certificate, expired_server, of_another_host])
def test_client_refuses_a_server_with_a_bad_certificate(shared_daemon: Daemon, tmp_path: Path, issue: Issue) -> None:
    with tls_server(issue(load(shared_daemon.pki.server_ca)), tmp_path) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert endpoint in line
    assert "its certificate does not hold" in line
    assert ("pki renew server --host" in line) == (issue is of_another_host)


def test_client_refuses_a_server_with_a_user_s_certificate(shared_daemon: Daemon, tmp_path: Path) -> None:
    with tls_server(load(shared_daemon.pki.client_certificate(USER)), tmp_path) as endpoint:
        assert "its certificate does not hold" in one_line(workerctl(endpoint, shared_daemon.pki))


def test_client_refuses_tls_1_2(shared_daemon: Daemon, tmp_path: Path) -> None:
    credential = issue_server(load(shared_daemon.pki.server_ca), ["localhost"])
    with tls_server(credential, tmp_path, ssl.TLSVersion.TLSv1_2) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert endpoint in line
    assert "TLS" in line


def test_nobody_listening_is_told_as_that(shared_daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"https://127.0.0.1:{listening.getsockname()[1]}"
    line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert endpoint in line
    assert "is workerd running there?" in line


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


def test_workerctl_says_that_the_certificate_names_no_user(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path
) -> None:
    credential = issue_any(authority, USER, [x509.DNSName("localhost")], ExtendedKeyUsageOID.CLIENT_AUTH)
    line = one_line(workerctl(shared_daemon.endpoint, client_folder(shared_daemon, tmp_path, credential)))
    assert "the client certificate names no user of this daemon" in line


def listen_until_they_leave(connected: socket.socket) -> None:
    """Say nothing at all."""
    with contextlib.suppress(ConnectionError):
        while connected.recv(1024):
            pass


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda connected: connected.recv(1024), "the connection was closed before anything was said"),
        (lambda connected: connected.sendall(b"220 mail.example.org\r\n"), "does not speak TLS"),
        (listen_until_they_leave, "no answer within 2 s"),
    ],
    ids=["closes", "speaks", "is silent"],
)
def test_port_of_another_program_is_told_as_that(
    shared_daemon: Daemon, answer: Callable[[socket.socket], object], told: str
) -> None:
    with one_after_another(answer) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki, "--keepalive-seconds", "2", "whoami"))
    assert endpoint in line
    assert told in line
