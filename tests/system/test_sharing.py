"""Sharing: what another user may then do, and what becomes of it when it is taken back."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, JobState, SpawnRequest

from tests.daemon import Daemon, running_daemon
from tests.system.test_reload import wait_told
from workerctl.client import Client
from workerctl.errors import CallFailed, JobNotFound
from workerctl.events import LogEvent, Output

ADMIN, VIEWER, OTHER = "ada", "vera", "bob"
SOON_SECONDS = 20
SPINNER = SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"])
BOB_MAY_FOLLOW = 'permit (principal, action == Action::"stream-log", resource is Job) when { principal.name == "bob" };'


@pytest.fixture(params=["1", "3"], ids=["one process", "several processes"])
def shareable(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon of each kind, with users."""
    daemon = Daemon(tmp_path / "state")
    for name in (ADMIN, VIEWER, OTHER):
        daemon.pki.issue_client(name)
    options = ("--roles.admin", ADMIN, "--processes", request.param)
    with running_daemon(tmp_path / "state", *options) as daemon:
        yield daemon


async def introduce(daemon: Daemon, *users: str) -> dict[str, str]:
    """Have users call for the first time, and give their ids."""
    ids = {}
    for name in users:
        async with daemon.client(name) as client:
            me = (await client.whoami()).user
        assert me is not None
        ids[name] = me.id
    return ids


@contextlib.asynccontextmanager
async def followed(client: Client, job_id: str) -> AsyncIterator["asyncio.Task[list[LogEvent]]"]:
    """Follow a job's log; its first output has come."""
    ready = asyncio.Event()

    async def follow() -> list[LogEvent]:
        events = []
        async with contextlib.aclosing(client.stream_log(job_id)) as log:
            async for event in log:
                events.append(event)
                ready.set()
        return events

    task = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(SOON_SECONDS):
            await ready.wait()
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def failure_of(task: "asyncio.Task[list[LogEvent]]") -> CallFailed:
    """Wait until a follower is cut off, and give what it was told."""
    async with asyncio.timeout(SOON_SECONDS):
        with pytest.raises(CallFailed) as raised:
            await task
    return raised.value


async def refusal_of(client: Client, job_id: str) -> CallFailed:
    """Try to read a log, and give what that is refused with."""
    with pytest.raises(CallFailed) as raised:
        async for _ in client.stream_log(job_id, follow=False):
            pass
    return raised.value


def told(failure: CallFailed) -> tuple[Status, ErrorReason, str]:
    """Give all that somebody is told."""
    return failure.status, failure.reason, str(failure)


async def test_shared_job_is_seen_and_read_and_no_more(shareable: Daemon) -> None:
    ids = await introduce(shareable, OTHER, VIEWER, ADMIN)
    async with shareable.client() as owner:
        job_id = await owner.spawn(SPINNER)
    given = shareable.workerctl("share", job_id, "--with", OTHER, "--allow", "status, stream-log", "--output", "json")
    assert json.loads(given.stdout) == [{"user": {"id": "", "name": OTHER}, "rights": ["status", "stream-log"]}]
    assert shareable.workerctl("status", "--uuid", job_id, user=OTHER).returncode == 0
    read = shareable.workerctl("stream-log", "--past-events", "--no-follow", "--uuid", job_id, user=OTHER)
    assert (read.returncode, read.stdout) == (0, b"ready\n")
    for arguments, right in (
        (("stop", "--uuid", job_id), "stop"),
        (("remove", "--uuid", job_id), "remove"),
        (("share", job_id), "share"),
    ):
        result = shareable.workerctl(*arguments, user=OTHER)
        assert (result.returncode, result.stdout) == (125, b""), result.stderr
        assert f"you have no right to {right}".encode() in result.stderr
        assert shareable.workerctl(*arguments, user=VIEWER).returncode == 123
    shown = shareable.workerctl("share", job_id)
    assert OTHER.encode() in shown.stdout
    assert ids[OTHER].encode() not in shown.stdout
    assert ids[OTHER].encode() in shareable.workerctl("share", job_id, user=ADMIN).stdout  # who may act for them
    assert b"status, stream-log" in shown.stdout
    assert shareable.workerctl("share", job_id, "--with", OTHER, "--revoke").returncode == 0
    assert shareable.workerctl("status", "--uuid", job_id, user=OTHER).returncode == 123


async def test_whoever_follows_is_cut_off_when_the_share_is_taken_back(shareable: Daemon) -> None:
    """Through whichever process it is taken back; in the words of a new call. The others read on."""
    await introduce(shareable, OTHER, VIEWER, ADMIN)
    async with shareable.client() as owner, shareable.client(OTHER) as other, shareable.client(ADMIN) as admin:
        job_id = await owner.spawn(SPINNER)
        for lost, words in (
            ({"status", "stream-log"}, ErrorReason.JOB_NOT_FOUND),
            ({"stream-log"}, ErrorReason.NOT_PERMITTED),
        ):
            await owner.share(job_id, OTHER, {"status", "stream-log"})
            async with (
                followed(owner, job_id) as owners,
                followed(other, job_id) as others,
                followed(admin, job_id) as theirs,
            ):
                await owner.share(job_id, VIEWER, {"status"})  # which is nothing to the others
                await owner.share(job_id, VIEWER)
                async with shareable.client() as again:
                    await again.share(job_id, OTHER, {"status", "stream-log"} - lost)
                failure = await failure_of(others)
                assert failure.reason is words
                assert told(failure) == told(await refusal_of(other, job_id))
                assert not owners.done()
                assert not theirs.done()
        assert (await owner.status(job_id)).state is JobState.RUNNING


async def test_whoever_follows_is_cut_off_when_a_policy_is_taken_back(shareable: Daemon) -> None:
    folder = shareable.state / "policies"
    folder.mkdir()
    async with shareable.client() as owner, shareable.client(OTHER) as other:
        await introduce(shareable, OTHER)
        job_id = await owner.spawn(SPINNER)
        (folder / "mine.cedar").write_text(BOB_MAY_FOLLOW)
        wait_told(shareable, "policies were changed and are in force")
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                with contextlib.suppress(JobNotFound):
                    async with followed(other, job_id) as others, followed(owner, job_id) as owners:
                        (folder / "mine.cedar").write_text("permit (")
                        wait_told(shareable, "policies were changed and cannot be used")
                        assert not others.done()
                        (folder / "mine.cedar").unlink()
                        assert isinstance(await failure_of(others), JobNotFound)
                        assert not owners.done()
                    return


async def test_a_share_counts_whatever_is_printed_meanwhile(shareable: Daemon) -> None:
    """What is asked again is asked when shares change, not with each output."""
    await introduce(shareable, OTHER)
    async with shareable.client() as owner, shareable.client(OTHER) as other:
        job_id = await owner.spawn(SpawnRequest(program="sh", args=["-c", "yes | head -c 3000000; echo end"]))
        await owner.share(job_id, OTHER, {"stream-log"})
        events = [event async for event in other.stream_log(job_id)]
    assert sum(len(event.data) for event in events if isinstance(event, Output)) == 3_000_004
