"""What workerctl demands of whom it calls, and what it says when the one or the other is refused."""

import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from pki.authority import Credential, issue_client, issue_server
from pki.files import key_path, load_pair
from pki.store import DEFAULT_TRUST_DOMAIN, PkiFolder
from tests.certificates import EXPIRED, REFUSED_CLIENTS, USER_ID, Issue, client_folder, expired, issue_any
from tests.commands import run_workerctl
from tests.daemon import USER, Daemon
from tests.strangers import one_after_another, tls_server

FAILED = 125
SECONDS = 20


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
    return run_workerctl(*options, *(arguments or ("whoami",)), seconds=SECONDS)


def test_client_takes_a_server_of_its_authority(shared_daemon: Daemon, tmp_path: Path) -> None:
    """The counter-test of the ones below: what fails there is not the server that they are made of."""
    credential = issue_server(load_pair(shared_daemon.pki.server_ca), ["localhost"])
    with tls_server(credential, tmp_path) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert "certificate does not hold" not in line
    assert "TLS" not in line


def test_client_refuses_a_server_of_another_authority(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize()
    folder.issue_client(USER)
    line = one_line(workerctl(shared_daemon.endpoint, folder))
    assert shared_daemon.endpoint in line
    assert "its certificate does not hold" in line
    assert "--pki-dir" in line


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
    with tls_server(issue(load_pair(shared_daemon.pki.server_ca)), tmp_path) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert endpoint in line
    assert "its certificate does not hold" in line
    assert ("pki renew server --host" in line) == (issue is of_another_host)


def test_a_server_s_certificate_of_the_future_makes_workerctl_ask_for_the_clock(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    usage, begins_in = ExtendedKeyUsageOID.SERVER_AUTH, timedelta(hours=1)
    authority = load_pair(shared_daemon.pki.server_ca)
    credential = issue_any(authority, "localhost", [x509.DNSName("localhost")], usage, begins_in)
    with tls_server(credential, tmp_path) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert "not yet valid: a clock is wrong: this machine's clock (" in line
    assert "renew" not in line


def test_a_user_s_certificate_of_the_future_makes_workerctl_ask_for_the_clock(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path
) -> None:
    uri = x509.UniformResourceIdentifier(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID}")
    credential = issue_any(authority, USER, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, timedelta(hours=1))
    line = one_line(workerctl(shared_daemon.endpoint, client_folder(shared_daemon, tmp_path, credential)))
    assert "it may not be valid yet, and a clock be wrong" in line
    assert "renew" not in line


def test_an_expired_server_s_certificate_is_to_be_renewed(shared_daemon: Daemon, tmp_path: Path) -> None:
    with tls_server(expired_server(load_pair(shared_daemon.pki.server_ca)), tmp_path) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert "renew it with `workerctl pki renew server`" in line


def test_client_refuses_a_server_with_a_user_s_certificate(shared_daemon: Daemon, tmp_path: Path) -> None:
    with tls_server(load_pair(shared_daemon.pki.client_certificate(USER)), tmp_path) as endpoint:
        assert "its certificate does not hold" in one_line(workerctl(endpoint, shared_daemon.pki))


def test_client_refuses_tls_1_2(shared_daemon: Daemon, tmp_path: Path) -> None:
    credential = issue_server(load_pair(shared_daemon.pki.server_ca), ["localhost"])
    with tls_server(credential, tmp_path, ssl.TLSVersion.TLSv1_2) as endpoint:
        line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert endpoint in line
    assert "TLS" in line


def test_refused_server_is_not_asked_again_for_a_log(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize()
    folder.issue_client(USER)
    result = workerctl(shared_daemon.endpoint, folder, "stream-log", "--past-events", "--uuid", USER_ID)
    assert "its certificate does not hold" in one_line(result)


@pytest.mark.parametrize("issue", REFUSED_CLIENTS)
def test_workerctl_says_that_its_certificate_is_refused(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path, issue: Issue
) -> None:
    folder = client_folder(shared_daemon, tmp_path, issue(authority))
    line = one_line(workerctl(shared_daemon.endpoint, folder))
    assert shared_daemon.endpoint in line
    assert "certificate" in line


def test_workerctl_says_that_the_daemon_s_own_certificate_is_refused(shared_daemon: Daemon, tmp_path: Path) -> None:
    folder = client_folder(shared_daemon, tmp_path, load_pair(shared_daemon.pki.server_certificate))
    assert "certificate" in one_line(workerctl(shared_daemon.endpoint, folder))


def test_workerctl_says_that_the_certificate_names_no_user(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path
) -> None:
    credential = issue_any(authority, USER, [x509.DNSName("localhost")], ExtendedKeyUsageOID.CLIENT_AUTH)
    line = one_line(workerctl(shared_daemon.endpoint, client_folder(shared_daemon, tmp_path, credential)))
    assert "the client certificate names no user of this daemon" in line


def test_refused_client_does_not_ask_again_for_a_log(
    shared_daemon: Daemon, authority: Credential, tmp_path: Path
) -> None:
    folder = client_folder(shared_daemon, tmp_path, expired(authority))
    result = workerctl(shared_daemon.endpoint, folder, "stream-log", "--past-events", "--uuid", USER_ID)
    assert "certificate" in one_line(result)


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


def test_nobody_listening_is_told_as_that(shared_daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = f"https://127.0.0.1:{listening.getsockname()[1]}"
    line = one_line(workerctl(endpoint, shared_daemon.pki))
    assert endpoint in line
    assert "is workerd running there?" in line


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
