"""Certificates that count no more: refused when somebody connects, at each call, and while a call is under way."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from grpclib.const import Status
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, StreamEnded
from h2.exceptions import ProtocolError
from worker_api.worker.v1 import ErrorReason, JobState, SpawnRequest, StreamLogRequest

from pki.authority import issue_client
from pki.files import load_pair, replace_file, write_pair
from pki.inventory import serial_text
from pki.store import PkiFolder
from pki.tls import client_context
from tests.daemon import USER, Daemon
from tests.raw import peer, status
from tests.system.test_reload import REFUSED, wait_told
from tests.waiting import wait_until
from workerctl.client import Client
from workerctl.errors import CallFailed, ClientError, Refused
from workerctl.events import Output

OTHER = "bob"
USER_ID = "123e4567-e89b-42d3-a456-426614174000"
SOON_SECONDS = 10


async def wait_refused(client: Client) -> ClientError:
    """Call until a call is refused, over the same connection or a new one."""
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            try:
                await client.whoami()
            except (CallFailed, Refused) as error:
                return error
            await asyncio.sleep(0.05)


def follow_in_a_program(daemon: Daemon, user: str) -> "subprocess.Popen[bytes]":
    """Follow a job that goes on for ever, and return when its first output has come."""
    command = daemon.command("run", "--", "sh", "-c", "echo ready; exec sleep 1000", user=user)
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == b"ready\n"
    return program


def test_revoked_user_is_told_so_and_others_are_served(any_daemon: Daemon) -> None:
    any_daemon.pki.issue_client(OTHER)
    any_daemon.pki.revoke(USER)
    wait_told(any_daemon, "certificates were changed")
    assert "changed=['client-ca.crl']" in any_daemon.errors() and "revoked=1" in any_daemon.errors()
    result = any_daemon.workerctl("whoami")
    assert (result.returncode, result.stdout) == (125, b"")
    assert b"the client certificate was revoked: ask whoever runs the daemon" in result.stderr
    assert any_daemon.workerctl("whoami", user=OTHER).returncode == 0
    any_daemon.pki.renew(USER)
    assert any_daemon.workerctl("whoami").returncode == 0


def test_stream_of_a_revoked_user_ends_soon_and_is_not_asked_for_again(any_daemon: Daemon) -> None:
    any_daemon.pki.issue_client(OTHER)
    with follow_in_a_program(any_daemon, USER) as follower, follow_in_a_program(any_daemon, OTHER) as other:
        begun = time.monotonic()
        any_daemon.pki.revoke(USER)
        out, err = follower.communicate(timeout=SOON_SECONDS)
        assert time.monotonic() - begun < 3
        assert (follower.returncode, out) == (125, b"")
        assert b"the client certificate was revoked" in err and b"trying again" not in err
        assert other.poll() is None
        other.terminate()
        other.communicate()


def test_revoked_user_s_handshake_fails(any_daemon: Daemon) -> None:
    """Not only calls are refused: nothing of the daemon but TLS is within reach."""
    assert first_bytes(any_daemon)
    any_daemon.pki.revoke(USER)
    wait_told(any_daemon, "certificates were changed")
    with pytest.raises(ssl.SSLError, match="ALERT_CERTIFICATE_REVOKED"):
        first_bytes(any_daemon)


def first_bytes(daemon: Daemon) -> bytes:
    """Connect, and give what the daemon says first."""
    context = client_context(daemon.pki, USER)
    with (
        socket.create_connection(("127.0.0.1", daemon.port), SOON_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connected,
    ):
        return connected.recv(9)


async def test_who_called_before_is_refused_when_calling_again(any_daemon: Daemon) -> None:
    async with any_daemon.client() as client:
        await client.whoami()
        any_daemon.pki.revoke(USER)
        error = await wait_refused(client)
    assert "the client certificate was revoked" in str(error)


@pytest.mark.parametrize(("expires", "reason"), [(False, b"was revoked"), (True, b"has expired")])
def test_a_connection_is_closed_when_its_certificate_counts_no_more(
    any_daemon: Daemon, *, expires: bool, reason: bytes
) -> None:
    """A call that is under way is answered first, with the same error as a new one."""
    lifetime = timedelta(seconds=6) if expires else timedelta(days=1)
    credential = issue_client(load_pair(any_daemon.pki.client_ca), OTHER, USER_ID, lifetime)
    write_pair(any_daemon.pki.client_certificate(OTHER), credential)
    with peer(any_daemon, OTHER) as idle, peer(any_daemon, OTHER) as calling:
        spawn = any_daemon.workerctl("spawn", "--working-directory", "/", "--", "sleep", "1000", user=OTHER)
        request = StreamLogRequest(job_id=spawn.stdout.decode().strip(), follow=True).SerializeToString()
        calling.request(calling.open("StreamLog"), request)
        calling.send()
        if not expires:
            any_daemon.pki.revoke(serial_text(credential.certificate.serial_number))
        for each in (idle, calling):
            goodbye = each.read(seconds=SOON_SECONDS)
            assert isinstance(goodbye, ConnectionTerminated)
            assert goodbye.error_code == ErrorCodes.NO_ERROR
            assert reason in (goodbye.additional_data or b"")
            assert each.closed(SOON_SECONDS)
        assert status(calling.events) is Status.UNAUTHENTICATED


def test_a_revoked_user_who_goes_on_calling_is_cut_off(any_daemon: Daemon) -> None:
    with peer(any_daemon) as calling:
        calls, until = 0, time.monotonic() + 20
        any_daemon.pki.revoke(USER)
        while not any(isinstance(event, ConnectionTerminated) for event in calling.events):
            assert time.monotonic() < until, f"{calls} calls were answered"
            try:
                calling.request(calling.open("WhoAmI"), b"")
            except ProtocolError:  # the GOAWAY has come
                break
            calling.send()
            calling.read(StreamEnded)
            calls += 1
        assert calling.closed(SOON_SECONDS)
    refused = [event for event in calling.events if status([event]) is Status.UNAUTHENTICATED]
    print(f"{calls} calls, of which {len(refused)} were refused")
    assert len(refused) < 5


async def test_stream_ends_when_its_certificate_expires_and_the_job_runs_on(any_daemon: Daemon) -> None:
    authority = load_pair(any_daemon.pki.client_ca)
    for name, lifetime in (("short", timedelta(seconds=4)), ("long", timedelta(days=1))):
        credential = issue_client(authority, name, USER_ID, lifetime)
        write_pair(any_daemon.pki.client_certificate(name), credential)
    async with any_daemon.client("short") as short, any_daemon.client("long") as long:
        job_id = await short.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
        pieces: list[bytes] = []

        async def follow() -> None:
            async with asyncio.timeout(SOON_SECONDS), contextlib.aclosing(short.stream_log(job_id)) as events:
                async for event in events:
                    assert isinstance(event, Output)
                    pieces.append(event.data)

        begun = time.monotonic()
        with pytest.raises(CallFailed) as raised:
            await follow()
        assert (raised.value.status, raised.value.reason) == (
            Status.UNAUTHENTICATED,
            ErrorReason.CERTIFICATE_EXPIRED,
        )
        assert pieces == [b"ready\n"]
        assert time.monotonic() - begun < 6
        with pytest.raises(ClientError, match="has expired: have it renewed"):
            await short.whoami()
        assert (await long.status(job_id)).state is JobState.RUNNING
    result = any_daemon.workerctl("whoami", user="short")
    assert b"the client certificate has expired: have it renewed" in result.stderr


def nonsense(pki: PkiFolder, other: PkiFolder) -> None:
    del other
    pki.client_crl.write_bytes(b"nonsense")


def gone(pki: PkiFolder, other: PkiFolder) -> None:
    del other
    pki.client_crl.unlink()


def of_another_authority(pki: PkiFolder, other: PkiFolder) -> None:
    shutil.copy(other.client_crl, pki.client_crl)


@pytest.mark.parametrize("spoil", [nonsense, gone, of_another_authority])
def test_list_that_does_not_count_revokes_nobody_and_pardons_nobody(
    daemon: Daemon, tmp_path: Path, spoil: Callable[[PkiFolder, PkiFolder], None]
) -> None:
    other = PkiFolder(tmp_path / "other")
    other.initialize(users=[USER])
    other.revoke(USER)
    daemon.pki.issue_client(OTHER)
    daemon.pki.revoke(USER)
    wait_until(lambda: b"was revoked" in daemon.workerctl("whoami").stderr, "the user was not revoked")
    spoil(daemon.pki, other)
    wait_told(daemon, REFUSED)
    assert b"was revoked" in daemon.workerctl("whoami").stderr
    assert daemon.workerctl("whoami", user=OTHER).returncode == 0


def test_daemon_starts_with_a_list_and_goes_by_it(daemon: Daemon) -> None:
    daemon.stop()
    daemon.pki.revoke(USER)
    daemon.start()
    assert b"was revoked" in daemon.workerctl("whoami").stderr


def test_an_older_list_pardons_nobody_neither_while_the_daemon_runs_nor_when_it_starts(any_daemon: Daemon) -> None:
    any_daemon.pki.issue_client(OTHER)
    any_daemon.pki.revoke(OTHER)
    wait_told(any_daemon, "certificates were changed")
    older = any_daemon.pki.client_crl.read_bytes()
    any_daemon.pki.revoke(USER)
    wait_told(any_daemon, "certificates were changed", count=2)
    replace_file(any_daemon.pki.client_crl, older)
    wait_told(any_daemon, "has number 1, and one with number 2 was in use")
    assert b"was revoked" in any_daemon.workerctl("whoami").stderr
    any_daemon.stop()
    with pytest.raises(AssertionError, match="has number 1, and one with number 2 was in use"):
        any_daemon.start()
    any_daemon.pki.revoke(OTHER)
    any_daemon.start()
    assert b"was revoked" in any_daemon.workerctl("whoami").stderr
