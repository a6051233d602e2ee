"""Share."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest, User

from tests.daemon import Daemon
from tests.narrowing import narrow
from workerctl.client import Client
from workerctl.errors import ArgumentInvalid, CallFailed

TRUE = SpawnRequest(program="true")
_numbers = itertools.count()


@pytest.fixture
async def other(shared_daemon: Daemon) -> AsyncIterator[Client]:
    """Another user, who has been here, and whose name is not known to other tests."""
    name = f"sharer{next(_numbers)}"
    shared_daemon.pki.issue_client(name)
    async with shared_daemon.client(name) as client:
        await client.whoami()
        yield client


async def name_of(client: Client) -> str:
    """Tell a client's user's name."""
    me = (await client.whoami()).user
    assert me is not None
    return me.name


async def test_rights_are_set_and_not_added(shared_daemon: Daemon, other: Client) -> None:
    me = (await other.whoami()).user
    assert me is not None
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        assert await owner.share(job_id) == []
        for named, shown in ((me.name, User(name=me.name)), (me.id, User(id=me.id, name=me.id))):
            for rights in ({"status"}, {"stop", "stream-log"}, set()):
                shares = await owner.share(job_id, named, rights)
                assert [(each.user, each.rights) for each in shares] == ([(shown, sorted(rights))] if rights else [])
                assert await owner.share(job_id) == shares


@pytest.mark.parametrize("first", ["name", "id"])
async def test_what_a_user_has_by_name_and_by_id_is_one(shared_daemon: Daemon, other: Client, first: str) -> None:
    """A right that is taken back by one does not remain by the other."""
    me = (await other.whoami()).user
    assert me is not None
    one, another = (me.name, me.id) if first == "name" else (me.id, me.name)
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        await owner.share(job_id, one, {"status"})
        assert (await other.status(job_id)).id == job_id
        assert len(await owner.share(job_id, another, {"status", "stop"})) == 1
        assert await owner.share(job_id, one) == []
        with pytest.raises(CallFailed) as raised:
            await other.status(job_id)
        assert raised.value.reason is ErrorReason.JOB_NOT_FOUND


async def test_sharing_is_answered_alike_whoever_has_a_name(shared_daemon: Daemon, other: Client) -> None:
    """The answer tells neither an id nor whether no user, one or two have the name."""
    twice = f"twice{next(_numbers)}"
    for _ in range(2):
        shared_daemon.pki.issue_client(twice, new_user=True)
        async with shared_daemon.client(twice) as client:
            await client.whoami()
        for path in shared_daemon.pki.path.glob(f"clients/{twice}.*"):
            path.unlink()
    names = [await name_of(other), twice, f"nobody{next(_numbers)}"]
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        for name in names:
            for shares in (await owner.share(job_id, name, {"status"}), await owner.share(job_id)):
                assert [(each.user, each.rights) for each in shares] == [(User(name=name), ["status"])]
            assert await owner.share(job_id, name) == []
        shown = shared_daemon.workerctl("share", job_id, "--with", names[0], "--allow", "status")
        assert shown.stdout.decode().split()[-3:] == [names[0], "-", "status"]


async def test_a_share_by_name_counts_for_the_first_user_with_that_name_who_comes(shared_daemon: Daemon) -> None:
    name = f"later{next(_numbers)}"
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        await owner.share(job_id, name, {"status", "stream-log"})
        shared_daemon.pki.issue_client(name)
        async with shared_daemon.client(name) as later:
            assert (await later.status(job_id)).id == job_id
            assert [job.id async for job in later.list_jobs(all_owners=True)] == [job_id]
            me = (await later.whoami()).user
            assert me is not None
            await owner.share(job_id, me.id)  # taken back by id
            with pytest.raises(CallFailed) as raised:
                await later.status(job_id)
            assert raised.value.reason is ErrorReason.JOB_NOT_FOUND
        assert await owner.share(job_id) == []


async def test_a_share_by_name_counts_for_nobody_once_two_users_have_that_name(shared_daemon: Daemon) -> None:
    name = f"reused{next(_numbers)}"
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        await owner.share(job_id, name, {"status"})
        for is_found in (True, False):
            shared_daemon.pki.issue_client(name, new_user=True)
            async with shared_daemon.client(name) as later:
                if is_found:
                    assert (await later.status(job_id)).id == job_id
                else:
                    with pytest.raises(CallFailed) as raised:
                        await later.status(job_id)
                    assert raised.value.reason is ErrorReason.JOB_NOT_FOUND
            for path in shared_daemon.pki.path.glob(f"clients/{name}.*"):
                path.unlink()


async def test_of_several_each_has_their_own(shared_daemon: Daemon, other: Client) -> None:
    names = [f"one-of-several{number}" for number in range(5)]
    for name in names:
        shared_daemon.pki.issue_client(name)
        async with shared_daemon.client(name) as client:
            await client.whoami()
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        await asyncio.gather(*(owner.share(job_id, name, {"status"}) for name in names))
        await owner.share(job_id, names[2])
        assert [each.user and each.user.name for each in await owner.share(job_id)] == names[:2] + names[3:]
        await owner.share(job_id, await name_of(other))  # who had nothing
        assert len(await owner.share(job_id)) == 4


async def test_a_right_counts_from_the_answer_on(shared_daemon: Daemon, other: Client) -> None:
    name = await name_of(other)
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        for _ in range(10):
            await owner.share(job_id, name, {"status"})
            assert (await other.status(job_id)).id == job_id
            await owner.share(job_id, name)
            with pytest.raises(CallFailed) as raised:
                await other.status(job_id)
            assert raised.value.reason is ErrorReason.JOB_NOT_FOUND


async def test_to_share_is_not_shared(shared_daemon: Daemon, other: Client) -> None:
    name = await name_of(other)
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        await owner.share(job_id, name, {"share", "status", "show-envs"})
        for call in (other.share(job_id), other.share(job_id, name, {"stop"}), other.status(job_id, show_envs=True)):
            with pytest.raises(CallFailed) as raised:
                await call
            assert raised.value.reason is ErrorReason.NOT_PERMITTED
        assert [each.rights for each in await owner.share(job_id)] == [["share", "show-envs", "status"]]


@pytest.mark.parametrize("right", ["fly", "", "Status", "spawn", "impersonate", "run-as", "*"])
async def test_what_is_no_right_on_a_job_cannot_be_given(shared_daemon: Daemon, other: Client, right: str) -> None:
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        with pytest.raises(ArgumentInvalid, match="what can be done to a job is explain, remove, share, "):
            await owner.share(job_id, await name_of(other), {"status", right})
        assert await owner.share(job_id) == []


async def test_rights_are_for_somebody(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        with pytest.raises(ArgumentInvalid, match="say whom the rights are for"):
            await owner.share(job_id, "", {"status"})
        with pytest.raises(ArgumentInvalid, match="is longer than 64 characters"):
            await owner.share(job_id, "x" * 65, {"status"})


async def test_shares_that_cannot_be_read_are_nobodys(shared_daemon: Daemon, other: Client) -> None:
    name = await name_of(other)
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(TRUE)
        await owner.share(job_id, name, {"status"})
        shared_daemon.folder(job_id).shares.write_bytes(b"[damaged")
        with pytest.raises(CallFailed) as raised:
            await other.status(job_id)
        assert raised.value.reason is ErrorReason.JOB_NOT_FOUND
        assert (await owner.status(job_id)).id == job_id
        with pytest.raises(CallFailed) as raised:
            await owner.share(job_id)
        assert raised.value.reason is ErrorReason.JOB_UNREADABLE


async def test_a_narrowed_certificate_gives_nobody_what_it_is_not_good_for(
    shared_daemon: Daemon, other: Client, tmp_path: Path
) -> None:
    """Whoever steals it would have all of its user's jobs by it, for longer than it holds."""
    name = await name_of(other)
    async with shared_daemon.client() as owner:
        job_id = await owner.spawn(SpawnRequest(program="sleep", args=["60"]))
        async with Client(await narrow(owner, shared_daemon, tmp_path / "narrowed", {"share", "status"})) as narrowed:
            with pytest.raises(CallFailed, match="no right to stop") as refused:
                await narrowed.share(job_id, name, {"status", "stop"})
            assert (refused.value.status, refused.value.reason) == (Status.PERMISSION_DENIED, ErrorReason.NOT_PERMITTED)
            assert await owner.share(job_id) == []
            told = shared_daemon.workerctl(
                "audit", "show", str(shared_daemon.state), "--job", job_id, "--output", "json"
            )
            [denied] = [line for line in map(json.loads, told.stdout.splitlines()) if line.get("action") == "stop"]
            assert (denied["verdict"], denied["policies"]) == ("deny", ["certificate"])
            assert [each.rights for each in await narrowed.share(job_id, name, {"status"})] == [["status"]]
            assert await narrowed.share(job_id, name) == []
        await owner.stop(job_id)
