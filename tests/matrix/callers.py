"""Everybody who calls in the matrix: a daemon, and connections with all kinds of certificates."""

import asyncio
import contextlib
import socket
import ssl
import tomllib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import ErrorReason, SpawnRequest, StreamLogRequest, WorkerServiceStub

from pki.authority import issue_client
from pki.files import load_pair
from pki.inventory import serial_text
from pki.narrowing import fit, make_key, make_request
from pki.store import PkiFolder
from tests.daemon import USER, Daemon, running_daemon
from tests.waiting import eventually
from workerctl.client import Client
from workerctl.target import Target
from workerctl.transport import WorkerChannel

EXAMPLE = Path(__file__).parents[2] / "examples" / "disk-usage"
SHARED = ("status", "stream-log")
SECRET = {"TOKEN": "hunter2"}
SOMEBODY = "somebody"
_LIFETIME = timedelta(seconds=4)
_SOON_SECONDS = 20


@dataclass(frozen=True)
class World:
    """A daemon with a job of the owner's, and everybody who calls.

    Attributes:
        owner: who made all jobs.
        standing: a job that runs, has printed, and that nobody is to change.
        connect: by the heading of the column: gives a connection of that caller's.
        turned_away: those of them with whom no connection is made.
        account: the system account that the daemon runs as.
    """

    daemon: Daemon
    owner: Client
    standing: str
    connect: dict[str, Callable[[], WorkerChannel]]
    turned_away: dict[str, Target]
    account: str

    async def start(self, script: str = "echo ready; exec sleep 1000") -> str:
        """Start a job of the owner's that has printed, and share it."""
        job_id = await self.owner.spawn(SpawnRequest(program="sh", args=["-c", script], envs=SECRET))
        async with contextlib.aclosing(self.owner.stream_log(job_id)) as events:
            async for _ in events:
                break
        await self.owner.share(job_id, "shared", SHARED)
        return job_id

    async def run(self) -> str:
        """Run a job of the owner's to its end, and share it."""
        job_id = await self.start("echo ready")
        async for _ in self.owner.stream_log(job_id):
            pass
        return job_id

    def state(self, job_id: str | None) -> dict[str, bytes]:
        """Return which jobs there are and what is written down of one: all that a call could change."""
        jobs = {path.name: b"" for path in (self.daemon.state / "jobs").iterdir()}
        if job_id is None or job_id not in jobs:
            return jobs
        folder = self.daemon.folder(job_id)
        return jobs | {
            "status": msgspec.json.encode(folder.read_status()),
            "shares": repr(folder.read_shares()).encode(),
        }


def install_example(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Install the example's RPC for daemons that are started from now on."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = folder / "workerd_disk_usage-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["workerd.handlers"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[workerd.handlers]", *lines, ""]))
    for path in (folder, EXAMPLE):
        patch.syspath_prepend(path)
        patch.setenv("PYTHONPATH", str(path), prepend=":")


@contextlib.asynccontextmanager
async def everybody(folder: Path, account: str) -> AsyncIterator[World]:
    """Run a daemon and let everybody connect."""
    roles = ("--roles.admin", "admin", "--roles.viewer", "viewer")
    with running_daemon(folder / "state", *roles) as daemon:
        for user in ("other", "shared", "viewer", "admin", SOMEBODY):
            daemon.pki.issue_client(user)
        async with contextlib.AsyncExitStack() as stack:
            owner = await stack.enter_async_context(daemon.client())
            for user in ("shared", SOMEBODY):  # who may be named only if they have been here
                async with daemon.client(user) as client:
                    await client.whoami()
            me = (await owner.whoami()).user
            assert me is not None
            world = World(daemon, owner, "", {}, {}, account)
            job_id = await world.start()

            def open_once(target: Target) -> Callable[[], WorkerChannel]:
                channel = stack.enter_context(contextlib.closing(connect(target)))
                return lambda: channel

            def open_anew(target: Target) -> Callable[[], WorkerChannel]:
                return lambda: stack.enter_context(contextlib.closing(connect(target)))

            bare = Bare(daemon.endpoint, USER, daemon.pki.path)
            revoked, expired = (Target(daemon.endpoint, USER, folder / name) for name in ("revoked", "expired"))
            serial = own(daemon, revoked, me.id, timedelta(days=1))
            revoked_since = open_once(revoked)
            async with following(revoked_since(), job_id, ErrorReason.CERTIFICATE_REVOKED):
                daemon.pki.revoke(serial)
            await closed(revoked_since())
            own(daemon, expired, me.id, _LIFETIME)
            expired_since = open_once(expired)
            async with following(expired_since(), job_id, ErrorReason.CERTIFICATE_EXPIRED):
                pass
            await closed(expired_since())
            callers = {
                "owner": open_once(daemon.target()),
                "another user": open_once(daemon.target("other")),
                "shared with": open_once(daemon.target("shared")),
                "viewer": open_once(daemon.target("viewer")),
                "admin": open_once(daemon.target("admin")),
                "narrowed": open_once(await narrow(daemon, owner, folder / "narrowed")),
                "revoked since": revoked_since,
                "expired since": expired_since,
            }
            turned_away = {"revoked": revoked, "expired": expired, "none": bare}
            callers |= {name: open_anew(target) for name, target in turned_away.items()}
            turned_away |= {"revoked since": revoked, "expired since": expired}
            yield World(daemon, owner, job_id, callers, turned_away, account)


async def closed(channel: WorkerChannel) -> None:
    """Wait until the daemon has closed a connection."""

    async def is_lost() -> bool:
        return channel.lost

    await eventually(is_lost)


class Bare(Target):
    """Somebody who has no certificate."""

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki().server_ca))
        context.set_alpn_protocols(["h2"])
        return context


def connect(target: Target) -> WorkerChannel:
    """Return a connection, with nothing between the caller and the errors."""
    return WorkerChannel(*target.resolve(), target.tls())


def alert(target: Target) -> str:
    """Connect, say nothing, and give what the daemon refuses the certificate with: what it said, in OpenSSL's words.

    What is sent meanwhile may lose it to a reset (RFC 9112 §9.6).
    """
    host, port = target.resolve()
    with (
        socket.create_connection((host, port), _SOON_SECONDS) as plain,
        target.tls().wrap_socket(plain, server_hostname=host) as connected,
    ):
        try:
            return repr(connected.recv(1))
        except ssl.SSLError as error:
            return error.reason or ""


def own(daemon: Daemon, target: Target, user_id: str, lifetime: timedelta) -> str:
    """Lay down a further certificate of the owner's, and give its serial number."""
    credential = issue_client(load_pair(daemon.pki.client_ca), USER, user_id, lifetime)
    target.pki().take_up(USER, credential, daemon.pki.server_ca.read_bytes())
    return serial_text(credential.certificate.serial_number)


async def narrow(daemon: Daemon, owner: Client, folder: Path) -> Target:
    """Issue a certificate to the owner that is good for a part of what they may do."""
    key = make_key("p256")
    issued = await owner.issue_credential(make_request(key), SHARED)
    PkiFolder(folder).take_up(USER, fit(key, issued.certificate), daemon.pki.server_ca.read_bytes())
    return Target(daemon.endpoint, USER, folder)


@contextlib.asynccontextmanager
async def following(channel: WorkerChannel, job_id: str, reason: ErrorReason) -> AsyncIterator[None]:
    """Follow a job over a connection until its certificate counts no more."""
    request = StreamLogRequest(job_id=job_id, follow=True)
    events = WorkerServiceStub(channel).stream_log(request)
    await anext(events)
    yield
    async with asyncio.timeout(_SOON_SECONDS):
        with pytest.raises(GRPCError) as raised:
            async for _ in events:
                pass
    assert raised.value.status is Status.UNAUTHENTICATED
    assert [detail.reason for detail in raised.value.details or ()] == [reason]
