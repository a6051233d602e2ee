"""Certificates that are replaced while somebody uses them: the client goes on with the new one by itself."""

import asyncio
import contextlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from pki.authority import issue_client
from pki.files import load_pair, write_pair
from tests.daemon import Daemon
from tests.narrowing import narrow
from workerctl.client import Client
from workerctl.errors import CallFailed, Refused
from workerctl.events import Output
from workerctl.retry import Patience

USER_ID = "123e4567-e89b-42d3-a456-426614174000"
SOON_SECONDS = 20


def short_lived(daemon: Daemon) -> None:
    """Give a user a certificate that expires soon."""
    credential = issue_client(load_pair(daemon.pki.client_ca), "short", USER_ID, timedelta(seconds=4))
    write_pair(daemon.pki.client_certificate("short"), credential)


async def follow(client: Client, job_id: str, said: list[bytes], ready: asyncio.Event) -> None:
    async with asyncio.timeout(SOON_SECONDS), contextlib.aclosing(client.stream_log(job_id)) as events:
        async for event in events:
            if isinstance(event, Output):
                said.append(event.data)
                ready.set()


def waiting_job(gate: Path) -> SpawnRequest:
    """A job that prints once at its start, and once it is let."""
    return SpawnRequest(program="sh", args=["-c", f"echo one; read line <{gate}; echo two"])


@pytest.mark.parametrize("end", ["expired", "revoked"])
async def test_stream_goes_on_with_the_certificate_that_took_the_place_of_its_own(
    daemon: Daemon, tmp_path: Path, end: str
) -> None:
    told: list[str] = []
    gone_on, ready, gate = asyncio.Event(), asyncio.Event(), tmp_path / "gate"
    short_lived(daemon)
    serial = load_pair(daemon.pki.client_certificate("short")).certificate.serial_number

    def tell(sentence: str) -> None:
        told.append(sentence)
        gone_on.set()

    said: list[bytes] = []
    async with Client(daemon.target("short"), on_retry=tell) as client, asyncio.TaskGroup() as tasks:
        os.mkfifo(gate)
        job_id = await client.spawn(waiting_job(gate))
        tasks.create_task(follow(client, job_id, said, ready))
        await ready.wait()
        daemon.pki.renew("short")
        if end == "revoked":
            daemon.pki.revoke(f"{serial:X}")
        async with asyncio.timeout(SOON_SECONDS):
            await gone_on.wait()
        gate.write_text("go\n")
    assert b"".join(said) == b"one\ntwo\n"
    assert told == ["the certificate counts no more, but another has taken its place: trying again from byte 4"]


async def test_calls_go_on_too_and_a_narrowed_certificate_is_as_good(daemon: Daemon, tmp_path: Path) -> None:
    async with daemon.client() as client:
        target = await narrow(client, daemon, tmp_path / "one", ["whoami"], timedelta(seconds=2))
        async with Client(target) as narrowed:
            before = await narrowed.whoami()
            again = ("credential", "issue", "--allow", "whoami", "--replace", "--out", str(tmp_path / "one"))
            assert daemon.workerctl(*again).returncode == 0
            async with asyncio.timeout(SOON_SECONDS):
                while (after := await narrowed.whoami()).certificate_expires_at == before.certificate_expires_at:
                    await asyncio.sleep(0.1)
    assert after.rights == before.rights == ["whoami"]


@pytest.mark.parametrize("replaced", [False, True], ids=["not replaced", "replaced by one that is revoked too"])
async def test_without_another_that_counts_it_is_an_error_as_ever(daemon: Daemon, replaced: bool) -> None:
    short_lived(daemon)
    async with Client(daemon.target("short")) as client:
        await client.whoami()
        if replaced:
            daemon.pki.renew("short")
            daemon.pki.revoke("short")
        with pytest.raises((CallFailed, Refused), match=r"was revoked|has expired"):
            await call_for_ever(client)


async def call_for_ever(client: Client) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            await client.whoami()
            await asyncio.sleep(0.1)


async def test_without_retries_later_calls_go_on_with_the_certificate_that_took_the_place(daemon: Daemon) -> None:
    """The daemon closes the connection, and the next call makes another."""
    short_lived(daemon)
    async with Client(daemon.target("short"), patience=Patience(retry_seconds=0)) as client:
        before = (await client.whoami()).certificate_expires_at
        daemon.pki.renew("short")
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                with contextlib.suppress(CallFailed):  # of a call that is under way just then
                    if (await client.whoami()).certificate_expires_at != before:
                        break
                await asyncio.sleep(0.1)
