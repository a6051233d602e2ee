"""What other people's tools find on the daemon's port: sslscan, OpenSSL's own client, nghttp2's clients."""

import contextlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pki.authority import Credential, issue_client, make_authority
from pki.files import key_path, load_pair, write_pair
from pki.store import DEFAULT_TRUST_DOMAIN
from tests.daemon import USER, Daemon, running_daemon

SECONDS = 60
OTHER = "revoked"
USER_ID = "123e4567-e89b-42d3-a456-426614174000"


def need(tool: str, package: str) -> None:
    """Skip the test where a tool is missing."""
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool}: install Debian's {package}, or run `nox -s peers` as root")


def run(*command: str, said: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a tool to its end."""
    return subprocess.run(command, input=said, capture_output=True, timeout=SECONDS, check=False)


def is_served(daemon: Daemon) -> bool:
    """Tell whether somebody else is served."""
    return daemon.workerctl("whoami").returncode == 0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has revoked a user."""
    with running_daemon(tmp_path_factory.mktemp("daemon") / "state") as daemon:
        daemon.pki.issue_client(OTHER)
        revoked = daemon.workerctl("pki", "revoke", OTHER)
        assert revoked.returncode == 0, revoked.stderr
        yield daemon
        assert "Traceback" not in daemon.errors()


@pytest.fixture(scope="module")
def scanned(daemon: Daemon) -> ElementTree.Element:
    """What sslscan finds, as the daemon's own user."""
    need("sslscan", "sslscan")
    certificate = daemon.pki.client_certificate(USER)
    names = (f"--certs={certificate}", f"--pk={key_path(certificate)}", "--show-client-cas", "--show-times")
    result = run("sslscan", "--xml=-", "--no-colour", *names, f"localhost:{daemon.port}")
    assert result.returncode == 0, result.stderr
    found = ElementTree.fromstring(result.stdout).find("ssltest")
    assert found is not None, result.stdout
    return found


def test_sslscan_finds_tls_1_3_alone(scanned: ElementTree.Element) -> None:
    found = {
        (each.get("type"), each.get("version")) for each in scanned.findall("protocol") if each.get("enabled") == "1"
    }
    assert found == {("tls", "1.3")}


def test_sslscan_finds_strong_ciphers_alone(scanned: ElementTree.Element) -> None:
    ciphers = scanned.findall("cipher")
    assert {cipher.get("sslversion") for cipher in ciphers} == {"TLSv1.3"}
    assert {cipher.get("strength") for cipher in ciphers} <= {"strong", "acceptable"}
    assert all(int(cipher.get("bits", "0")) >= 128 for cipher in ciphers)


def test_sslscan_finds_strong_groups_alone(scanned: ElementTree.Element) -> None:
    groups = scanned.findall("group")
    assert groups
    assert all(int(group.get("bits", "0")) >= 112 for group in groups), [group.attrib for group in groups]


def test_sslscan_finds_no_known_weakness(scanned: ElementTree.Element) -> None:
    compression, renegotiation = scanned.find("compression"), scanned.find("renegotiation")
    assert compression is None or compression.get("supported") == "0"
    assert renegotiation is None or renegotiation.get("supported") == "0"
    assert all(each.get("vulnerable") == "0" for each in scanned.findall("heartbleed"))


def s_client(daemon: Daemon, *options: str, credential: Path | None = None, said: bytes = b"") -> str:
    """Connect with OpenSSL's client, and give all that it says."""
    need("openssl", "openssl")
    own = ("-cert", str(credential), "-key", str(key_path(credential))) if credential is not None else ()
    command = ("openssl", "s_client", "-connect", f"localhost:{daemon.port}", "-CAfile", str(daemon.pki.server_ca))
    result = run(*command, "-verify_return_error", *own, *options, said=said)
    return (result.stdout + result.stderr).decode(errors="replace")


def save(path: Path, credential: Credential) -> Path:
    """Write a certificate with its key."""
    write_pair(path, credential)
    return path


HTTP_2 = ("-alpn", "h2", "-ign_eof", "-quiet")
# What a client says first, and a goodbye (RFC 9113 §3.4, §6.8): a daemon that serves answers, and closes.
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("0000000400000000000000080700000000000000000000000000")


def test_openssl_with_a_good_certificate_is_served(daemon: Daemon) -> None:
    """The counter-test of the refusals below."""
    good = daemon.pki.client_certificate(USER)
    said = s_client(daemon, "-alpn", "h2", "-ign_eof", credential=good, said=HELLO)
    assert "Verification: OK" in said
    assert "New, TLSv1.3" in said
    assert "ALPN protocol: h2" in said
    assert "alert" not in said


def test_openssl_without_a_certificate_is_refused(daemon: Daemon) -> None:
    assert "alert certificate required" in s_client(daemon, *HTTP_2, said=HELLO)


def test_openssl_with_a_bad_certificate_is_told_why(daemon: Daemon, tmp_path: Path) -> None:
    stranger = make_authority("workerd client CA", DEFAULT_TRUST_DOMAIN)
    bad = {
        "unknown ca|decrypt error|bad certificate": save(tmp_path / "a.crt", issue_client(stranger, USER, USER_ID)),
        "certificate expired": save(
            tmp_path / "b.crt", issue_client(load_pair(daemon.pki.client_ca), USER, USER_ID, timedelta(minutes=-1))
        ),
        "certificate revoked": daemon.pki.client_certificate(OTHER),
        "unknown ca|unsupported certificate": daemon.pki.server_certificate,
    }
    for alert, credential in bad.items():
        said = s_client(daemon, *HTTP_2, credential=credential, said=HELLO)
        assert re.search(f"alert ({alert})", said), (alert, said)
    assert is_served(daemon)


@pytest.mark.parametrize(
    "options",
    [
        ("-tls1_2",),
        ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-no_tls1_3", "-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "DES:3DES:RC4:MD5:@SECLEVEL=0"),
    ],
    ids=" ".join,
)
def test_openssl_with_an_older_protocol_or_weak_ciphers_is_refused(daemon: Daemon, options: tuple[str, ...]) -> None:
    said = s_client(daemon, *options, credential=daemon.pki.client_certificate(USER))
    assert "Cipher is (NONE)" in said or "no cipher match" in said or "Error with command" in said, said


@pytest.mark.parametrize("group", ["ffdhe2048", "ffdhe8192", "P-521"])
def test_openssl_with_a_group_that_costs_the_daemon_much_is_refused(daemon: Daemon, group: str) -> None:
    said = s_client(daemon, "-groups", group, credential=daemon.pki.client_certificate(USER))
    assert "handshake failure" in said, said


def test_openssl_with_the_group_that_every_client_has_is_served(daemon: Daemon) -> None:
    said = s_client(daemon, "-groups", "P-256", credential=daemon.pki.client_certificate(USER))
    assert "Verify return code: 0 (ok)" in said, said


@pytest.mark.parametrize("alpn", [(), ("-alpn", "http/1.1"), ("-alpn", "spdy/3,grpc-exp")], ids=" ".join)
def test_openssl_without_http_2_in_its_offer_gets_none(daemon: Daemon, alpn: tuple[str, ...]) -> None:
    good = daemon.pki.client_certificate(USER)
    said = s_client(daemon, *alpn, "-ign_eof", credential=good, said=b"GET / HTTP/1.1\r\n\r\n")
    assert "No ALPN negotiated" in said
    assert "HTTP/1" not in said.partition("---\n")[2]
    assert is_served(daemon)


_CONNECTIONS = 6  # the first, and five of `-reconnect`


def test_sessions_are_not_resumed(daemon: Daemon, tmp_path: Path) -> None:
    """One that was resumed would not be verified again."""
    good, session = daemon.pki.client_certificate(USER), tmp_path / "session.pem"
    first = s_client(daemon, "-alpn", "h2", "-ign_eof", "-sess_out", str(session), credential=good, said=HELLO)
    assert "New, TLSv1.3" in first
    assert "New Session Ticket" not in first
    if session.exists():
        again = s_client(daemon, "-alpn", "h2", "-ign_eof", "-sess_in", str(session), credential=good, said=HELLO)
        assert "New, TLSv1.3" in again
        assert "Reused" not in again
    reconnected = s_client(daemon, "-reconnect", credential=good)
    assert "Reused" not in reconnected
    assert reconnected.count("depth=0 ") == _CONNECTIONS  # verified anew each time


def test_nghttp_with_a_certificate_speaks_http_2_with_the_daemon(daemon: Daemon) -> None:
    need("nghttp", "nghttp2-client")
    certificate = daemon.pki.client_certificate(USER)
    own = (f"--cert={certificate}", f"--key={key_path(certificate)}")
    url = f"https://localhost:{daemon.port}/worker.v1.WorkerService/WhoAmI"
    headers = ("-H:method: POST", "-Hte: trailers", "-Hcontent-type: application/grpc")
    message = daemon.state / "empty-message"
    message.write_bytes(bytes(5))
    result = run("nghttp", "-v", "--no-verify-peer", *own, *headers, "-d", str(message), url)
    assert b"grpc-status: 0" in result.stdout, result.stdout


def test_nghttp_asking_thousands_of_times_at_once_disturbs_nobody(daemon: Daemon) -> None:
    need("nghttp", "nghttp2-client")
    certificate = daemon.pki.client_certificate(USER)
    own = (f"--cert={certificate}", f"--key={key_path(certificate)}", "--no-verify-peer")
    url = f"https://localhost:{daemon.port}/worker.v1.WorkerService/WhoAmI"
    headers = ("-Hte: trailers", "-Hcontent-type: application/grpc")
    for options in (("-n",), ("-n", "-w", "1", "-W", "1"), ("-n", "--no-content-length", "--continuation")):
        result = run("nghttp", *options, *own, *headers, "-m", "2000", url)
        assert result.returncode in (0, 1)
        assert is_served(daemon)


def test_h2load_without_a_certificate_loads_nothing_and_disturbs_nobody(daemon: Daemon) -> None:
    """It knows no certificates of clients; what it floods is handshakes."""
    need("h2load", "nghttp2-client")
    url = f"https://localhost:{daemon.port}/worker.v1.WorkerService/WhoAmI"
    with contextlib.ExitStack() as stack:
        flood = subprocess.Popen(
            ["h2load", "-n", "4000", "-c", "200", "-t", "1", "-D", "0", "-N", "10s", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        stack.callback(flood.wait, SECONDS)
        stack.callback(flood.kill)
        assert is_served(daemon)
        said, _ = flood.communicate(timeout=SECONDS)
    assert re.search(rb"requests: .* 0 succeeded", said), said
    assert is_served(daemon)
