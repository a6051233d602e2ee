"""Certificates that change while the daemon runs: taken up without a restart and without a cut; what is bad is not."""

import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509
from worker_api.worker.v1 import SpawnRequest

from pki.files import key_path
from pki.store import PkiFolder
from pki.tls import ExchangeableContext, client_context, server_context
from tests.daemon import USER, Daemon, running_daemon
from tests.waiting import wait_until
from workerctl.client import Client
from workerctl.events import Output
from workerctl.retry import Patience

TAKEN_UP = "certificates were changed and are used from now on"
REFUSED = "certificates were changed and cannot be used"


def serial_shown(daemon: Daemon, pki: PkiFolder | None = None) -> int:
    """The serial number of the certificate that the daemon shows who connects now, with certificates from a folder."""
    context = client_context(pki or daemon.pki, USER)
    with (
        socket.create_connection(("127.0.0.1", daemon.port), 20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connected,
    ):
        shown = connected.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def serial(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def wait_told(daemon: Daemon, what: str, count: int = 1) -> None:
    """Wait until the daemon, in each of its processes, has said something so many times."""
    processes = int(daemon.options[-1]) if daemon.options else 1
    wait_until(lambda: daemon.errors().count(what) >= count * processes, daemon.errors())


@contextlib.asynccontextmanager
async def followed(daemon: Daemon, gate: Path) -> AsyncIterator[Callable[[], AsyncIterator[bytes]]]:
    """Follow a job that prints once at its start and once it is let, over a connection that is made only once."""
    os.mkfifo(gate)
    async with Client(daemon.target(), patience=Patience(retry_seconds=0)) as client:
        job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", f"echo one; read line <{gate}; echo two"]))

        async def pieces() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(client.stream_log(job_id)) as events:
                async for event in events:
                    if isinstance(event, Output):
                        yield event.data

        yield pieces


async def test_renewed_certificate_is_shown_and_no_stream_is_cut(any_daemon: Daemon, tmp_path: Path) -> None:
    gate, said = tmp_path / "gate", []
    async with followed(any_daemon, gate) as pieces:
        async for piece in pieces():
            said.append(piece)
            if len(said) == 1:
                before = serial_shown(any_daemon)
                any_daemon.pki.renew("server")
                wait_told(any_daemon, TAKEN_UP)
                shown = serial_shown(any_daemon)
                assert shown == serial(any_daemon.pki.server_certificate) != before
                gate.write_text("go\n")
    assert said == [b"one\n", b"two\n"]
    assert REFUSED not in any_daemon.errors()


def test_another_authority_s_users_are_taken_and_the_old_one_s_are_not(any_daemon: Daemon, tmp_path: Path) -> None:
    """The way out when an authority is lost; it may sign for another trust domain."""
    other = PkiFolder(tmp_path / "other")
    other.initialize(trust_domain="elsewhere")
    other.issue_client("carol")
    old = any_daemon.pki.client_certificate(USER)
    for path in (other.client_certificate("carol"), key_path(other.client_certificate("carol"))):
        shutil.copy(path, old.parent)
    assert any_daemon.workerctl("whoami", user="carol").returncode == 125
    shutil.copy(other.client_ca, any_daemon.pki.path / "prepared")
    (any_daemon.pki.path / "prepared").rename(any_daemon.pki.client_ca)
    wait_told(any_daemon, TAKEN_UP)
    assert b"spiffe://elsewhere/" in any_daemon.workerctl("whoami", user="carol").stdout
    assert any_daemon.workerctl("whoami").returncode == 125


def half_written(pki: PkiFolder) -> None:
    pki.server_certificate.write_bytes(pki.server_certificate.read_bytes()[:200])


def of_another_key(pki: PkiFolder) -> None:
    key_path(pki.server_certificate).write_bytes(key_path(pki.client_certificate(USER)).read_bytes())


def gone(pki: PkiFolder) -> None:
    pki.client_ca.unlink()


def gone_altogether(pki: PkiFolder) -> None:
    pki.path.rename(pki.path.with_name("away"))


@pytest.mark.parametrize("spoil", [half_written, of_another_key, gone, gone_altogether])
def test_bad_certificates_are_refused_loudly_and_good_ones_are_taken_up_again(
    daemon: Daemon, tmp_path: Path, spoil: Callable[[PkiFolder], None]
) -> None:
    good = PkiFolder(tmp_path / "good")
    shutil.copytree(daemon.pki.path, good.path)
    before = serial_shown(daemon)
    spoil(daemon.pki)
    wait_told(daemon, REFUSED)
    assert serial_shown(daemon, good) == before
    shutil.copytree(good.path, daemon.pki.path, dirs_exist_ok=True)
    daemon.pki.renew("server")
    wait_until(lambda: serial_shown(daemon) == serial(daemon.pki.server_certificate), daemon.errors())
    assert daemon.workerctl("whoami").returncode == 0


def test_link_that_leads_elsewhere_from_now_on_is_followed(tmp_path: Path) -> None:
    """As tools that renew certificates leave them: the folder holds links, and new files come with new links."""
    with running_daemon(tmp_path / "state") as daemon:
        pki = daemon.pki
        for path in (pki.server_certificate, key_path(pki.server_certificate)):
            path.rename(pki.path / f"one-{path.name}")
            path.symlink_to(f"one-{path.name}")
        pki.issue_server("localhost")
        for path in (pki.server_certificate, key_path(pki.server_certificate)):
            path.unlink()
            path.symlink_to(f"servers/localhost{path.suffix}")
        wait_until(lambda: serial_shown(daemon) == serial(pki.server_certificate), daemon.errors())


def test_context_of_a_connection_stays_when_another_becomes_current(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize()
    context = ExchangeableContext(ssl.PROTOCOL_TLS_SERVER)
    first, second = server_context(folder), server_context(folder)
    context.current = first
    begun = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    context.current = second
    assert begun.context is first
    assert context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True).context is second
