"""Acting for another user: who may, what is kept of it, and what others are told."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import (
    ErrorReason,
    ListRequest,
    SpawnRequest,
    StreamLogRequest,
    User,
    WhoAmIRequest,
    WorkerServiceStub,
)

from pki.authority import issue_client
from pki.files import load_pair, write_pair
from tests.daemon import USER, Daemon, running_daemon
from tests.waiting import wait_until
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.target import Target
from workerctl.transport import WorkerChannel

ADMIN, OTHER, DEPUTY, ODD = "ada", "bob", "dora", "Jürgen 100%41"
DEPUTYS = (
    'permit (principal, action == Action::"impersonate", resource) '
    'when { principal.name == "dora" && resource.name == "bob" };'
)
SOON_SECONDS = 20
SPINNER = SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"])


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with an administrator, and with somebody who may act for one other."""
    daemon = Daemon(tmp_path_factory.mktemp("ruled") / "state")
    for name in (ADMIN, OTHER, DEPUTY):
        daemon.pki.issue_client(name)
    # Whoever makes certificates elsewhere may give any name.
    odd = issue_client(load_pair(daemon.pki.client_ca), ODD, "44444444-4444-4444-8444-444444444444")
    write_pair(daemon.pki.client_certificate("odd"), odd)
    (daemon.state / "policies").mkdir()
    (daemon.state / "policies" / "deputies.cedar").write_text(DEPUTYS)
    with running_daemon(daemon.state, "--roles.admin", ADMIN) as running:
        yield running


def acting(daemon: Daemon, user: str, certificate: str) -> Client:
    """Call as a user with the certificate of another."""
    return Client(replace(daemon.target(user), certificate=certificate))


async def introduce(daemon: Daemon, *users: str) -> dict[str, User]:
    """Have users call for the first time, and tell who they are."""
    found = {}
    for name in users:
        async with daemon.client(name) as client:
            me = (await client.whoami()).user
        assert me is not None
        found[name] = me
    return found


@contextlib.asynccontextmanager
async def channel_of(daemon: Daemon, certificate: str) -> AsyncIterator[WorkerServiceStub]:
    """Call with a certificate and whatever metadata."""
    target = daemon.target(certificate)
    async with contextlib.aclosing(WorkerChannel(*target.resolve(), target.tls())) as channel:
        yield WorkerServiceStub(channel)


def trail(daemon: Daemon) -> list[dict[str, Any]]:
    """Read the audit trail's events."""
    lines = [
        line for file in sorted((daemon.state / "audit").glob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    return [json.loads(line) for line in lines]


async def test_an_administrator_runs_lists_reads_and_stops_as_another(ruled: Daemon) -> None:
    users = await introduce(ruled, OTHER, ADMIN)
    as_other = ("--certificate", ADMIN)
    run = ruled.workerctl(*as_other, "run", "--", "sh", "-c", "echo said", user=OTHER)
    assert (run.returncode, run.stdout) == (0, b"said\n")
    spawned = ruled.workerctl(*as_other, "spawn", "--", "sh", "-c", "echo ready; exec sleep 1000", user=OTHER)
    job_id = spawned.stdout.decode().strip()
    async with ruled.client(OTHER) as other, ruled.client(ADMIN) as admin:
        job = await other.status(job_id)
        assert (job.owner, job.spawned_by) == (users[OTHER], users[ADMIN])
        assert job_id in [each.id async for each in other.list_jobs()]
        assert job_id not in [each.id async for each in admin.list_jobs()]
    assert job_id.encode() in ruled.workerctl(*as_other, "list", user=OTHER).stdout
    assert ADMIN.encode() in ruled.workerctl(*as_other, "status", "--uuid", job_id, user=OTHER).stdout
    stop = ruled.workerctl(*as_other, "stop", "--uuid", job_id, user=OTHER)
    assert stop.returncode == 0, stop.stderr
    read = ruled.workerctl(*as_other, "stream-log", "--past-events", "--uuid", job_id, user=OTHER)
    assert read.stdout == b"ready\n"
    async with ruled.client(OTHER) as other:
        end = (await other.status(job_id)).end
        assert end is not None
        assert end.stopped is not None
        assert end.stopped.by == users[ADMIN]  # who did it, not whom it was done for
    decisions = [each for each in trail(ruled) if each.get("event") == "decision" and each.get("job_id") == job_id]
    assert {(each["user"]["name"], each.get("actor", {}).get("name")) for each in decisions} >= {
        (OTHER, ADMIN),
        (OTHER, None),
    }
    stops = [each for each in decisions if each["action"] == "stop"]
    assert [(each["user"]["name"], each["actor"]["name"], each["verdict"]) for each in stops] == [
        (OTHER, ADMIN, "permit")
    ]


async def test_both_are_told_of(ruled: Daemon) -> None:
    users = await introduce(ruled, OTHER, ADMIN)
    for name in (OTHER, users[OTHER].id):
        async with acting(ruled, name, ADMIN) as client:
            me = await client.whoami()
        assert (me.user, me.acting, me.roles) == (users[OTHER], users[ADMIN], [])
        assert "impersonate" not in me.rights  # what is done for another is done with the other's rights


async def test_any_name_can_be_acted_for(ruled: Daemon) -> None:
    async with ruled.client("odd") as odd:
        user = (await odd.whoami()).user
    async with acting(ruled, ODD, ADMIN) as client:
        assert (await client.whoami()).user == user
    async with acting(ruled, ODD, "odd") as client:
        me = await client.whoami()
        assert (me.user, me.acting) == (user, None)


async def test_without_the_right_nobody_learns_who_there_is(ruled: Daemon) -> None:
    users = await introduce(ruled, OTHER, ADMIN, USER)
    failures = set()
    names = (ADMIN, users[ADMIN].id, "nobody", "33333333-3333-4333-8333-333333333333")
    for certificate in (USER, DEPUTY, OTHER):
        for name in names:
            async with acting(ruled, name, certificate) as client:
                with pytest.raises(CallFailed) as raised:
                    await client.whoami()
            failures.add((raised.value.status, raised.value.reason, str(raised.value).replace(name, "<name>")))
    [(status, reason, sentence)] = failures
    assert (status, reason) == (Status.PERMISSION_DENIED, ErrorReason.NOT_PERMITTED)
    assert sentence.startswith("you have no right to impersonate <name>:")
    denied = [each for each in trail(ruled) if each.get("action") == "impersonate" and each["verdict"] == "deny"]
    assert {each["name"] for each in denied} >= set(names)


async def test_whoever_may_act_for_anybody_is_told_of_a_name_that_is_nobodys(ruled: Daemon) -> None:
    async with acting(ruled, "nobody", ADMIN) as client:
        with pytest.raises(CallFailed) as raised:
            await client.whoami()
    assert raised.value.reason is ErrorReason.USER_UNKNOWN


async def test_a_policy_lets_somebody_act_for_one_user_alone(ruled: Daemon) -> None:
    await introduce(ruled, OTHER)
    async with acting(ruled, OTHER, DEPUTY) as client:
        me = await client.whoami()
        assert (me.user and me.user.name, me.acting and me.acting.name) == (OTHER, DEPUTY)
        job_id = await client.spawn(SPINNER)
    for name in (ODD, ADMIN):
        async with acting(ruled, name, DEPUTY) as client:
            with pytest.raises(CallFailed) as raised:
                await client.status(job_id)
        assert raised.value.reason is ErrorReason.NOT_PERMITTED


async def test_to_act_for_oneself_is_nothing(ruled: Daemon) -> None:
    users = await introduce(ruled, OTHER)
    async with channel_of(ruled, OTHER) as stub:
        for name in (OTHER, users[OTHER].id):
            me = await stub.who_am_i(WhoAmIRequest(), metadata={"workerd-username": name})
            assert (me.user, me.acting) == (users[OTHER], None)


@pytest.mark.parametrize(
    "metadata",
    [
        [("workerd-username", OTHER), ("workerd-username", OTHER)],
        [("workerd-username", OTHER), ("workerd-username", ADMIN)],
        [("workerd-username", "x" * 65)],
        [("workerd-username", "%" * 1000)],
        [("workerd-username", "%C3%BC" * 65)],
    ],
)
async def test_metadata_that_names_no_one_user_is_refused(ruled: Daemon, metadata: list[tuple[str, str]]) -> None:
    async with channel_of(ruled, OTHER) as stub:
        for call in (stub.who_am_i(WhoAmIRequest(), metadata=metadata), stub.list(ListRequest(), metadata=metadata)):
            with pytest.raises(GRPCError) as raised:
                await call
            assert raised.value.status is Status.INVALID_ARGUMENT
            assert "workerd-username" in str(raised.value.message)
        with pytest.raises(GRPCError) as raised:
            async for _ in stub.stream_log(StreamLogRequest(job_id=""), metadata=metadata):
                pass
        assert raised.value.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("sent", ["'; DROP", "../users", "%00", "%0A", "%FF", "%", "*"])
async def test_odd_names_are_nobodys(ruled: Daemon, sent: str) -> None:
    async with channel_of(ruled, ADMIN) as stub:
        with pytest.raises(GRPCError) as raised:
            await stub.who_am_i(WhoAmIRequest(), metadata={"workerd-username": sent})
    assert raised.value.status is Status.FAILED_PRECONDITION
    assert raised.value.details[0].reason is ErrorReason.USER_UNKNOWN


async def test_a_narrowed_certificate_acts_only_with_the_right_to(ruled: Daemon, tmp_path: Path) -> None:
    users = await introduce(ruled, OTHER, ADMIN)
    async with ruled.client(OTHER) as other:
        job_id = await other.spawn(SPINNER)
    for rights, failing in (("impersonate,status", "stop"), ("status,stop", "impersonate")):
        folder = tmp_path / failing
        made = ruled.workerctl("credential", "issue", "--allow", rights, "--out", str(folder), user=ADMIN)
        assert made.returncode == 0, made.stderr
        narrowed = Client(Target(ruled.endpoint, OTHER, folder, ADMIN))
        async with narrowed as client:
            with pytest.raises(CallFailed) as raised:
                await client.stop(job_id)
            assert raised.value.reason is ErrorReason.NOT_PERMITTED
            assert f"no right to {failing}" in str(raised.value)
            if failing == "stop":
                job = await client.status(job_id)
                assert job.owner == users[OTHER]


async def test_who_acts_no_more_is_cut_off(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "state")
    for name in (OTHER, DEPUTY):
        daemon.pki.issue_client(name)
    (daemon.state / "policies").mkdir()
    file = daemon.state / "policies" / "deputies.cedar"
    file.write_text(DEPUTYS)
    with running_daemon(daemon.state) as running:
        await introduce(running, OTHER)
        async with acting(running, OTHER, DEPUTY) as client, running.client(OTHER) as other:
            job_id = await client.spawn(SPINNER)
            log, own = client.stream_log(job_id), other.stream_log(job_id)
            async with asyncio.timeout(SOON_SECONDS), contextlib.aclosing(log), contextlib.aclosing(own):
                await anext(log)
                await anext(own)
                file.write_text(DEPUTYS.replace("dora", "nobody"))
                with pytest.raises(CallFailed) as raised:
                    await anext(log)
                assert str(raised.value).startswith(f"you have no right to impersonate {OTHER}:")
                await other.stop(job_id)
                await anext(own)


def test_whose_certificate_is_presented(ruled: Daemon) -> None:
    """Where there is none of the one who is named, the one's who calls."""
    missing = ruled.workerctl("--certificate", "zoe", "whoami", user=OTHER)
    assert (missing.returncode, missing.stdout) == (125, b"")
    assert b"zoe.crt" in missing.stderr
    missing = ruled.workerctl("whoami", user="zoe")
    assert (missing.returncode, missing.stdout) == (125, b"")
    assert b"zoe.crt" in missing.stderr
    wait_until(lambda: ruled.workerctl("--certificate", ADMIN, "whoami", user=OTHER).returncode == 0, "no answer")
