"""Whose job is whose: several users of one daemon, each with a certificate of their own."""

import contextlib
import itertools
import os
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import (
    ErrorDetail,
    ErrorReason,
    ExplainDecisionRequest,
    JobEnd,
    ListRequest,
    ListResponse,
    RemoveRequest,
    ShareRequest,
    SpawnRequest,
    StatusRequest,
    StopRequest,
    StreamLogRequest,
    User,
    WorkerServiceStub,
)

from pki.files import key_path
from tests.daemon import USER, Daemon
from tests.waiting import wait_unlocked, wait_until
from workerctl.client import Client
from workerctl.events import Output
from workerctl.transport import WorkerChannel

SPINNER = ("sh", "-c", "echo secret; exec sleep 1000")
_numbers = itertools.count()


@pytest.fixture
def other(shared_daemon: Daemon) -> str:
    """A user whom no other test knows, and who has no jobs."""
    name = f"other{next(_numbers)}"
    shared_daemon.pki.issue_client(name)
    return name


async def status(stub: WorkerServiceStub, job_id: str) -> None:
    """Call Status."""
    await stub.status(StatusRequest(job_id=job_id))


async def stop(stub: WorkerServiceStub, job_id: str) -> None:
    """Call Stop."""
    await stub.stop(StopRequest(job_id=job_id))


async def remove(stub: WorkerServiceStub, job_id: str) -> None:
    """Call Remove."""
    await stub.remove(RemoveRequest(job_id=job_id))


async def share(stub: WorkerServiceStub, job_id: str) -> None:
    """Call Share, with somebody whom nobody knows."""
    await stub.share(ShareRequest(job_id=job_id, user="nobody", rights=["status"]))


async def explain(stub: WorkerServiceStub, job_id: str) -> None:
    """Call ExplainDecision, with policies that would let everybody in."""
    policies = "permit (principal, action, resource);"
    await stub.explain_decision(ExplainDecisionRequest(job_id=job_id, right="status", policies=policies))


async def envs(stub: WorkerServiceStub, job_id: str) -> None:
    """Call Status for the environment, too."""
    await stub.status(StatusRequest(job_id=job_id, show_envs=True))


async def stream_log(stub: WorkerServiceStub, job_id: str) -> None:
    """Call StreamLog."""
    async for _ in stub.stream_log(StreamLogRequest(job_id=job_id)):
        pass


CALLS: list[Callable[[WorkerServiceStub, str], Awaitable[None]]] = [
    status,
    stop,
    stream_log,
    remove,
    share,
    explain,
    envs,
]


@contextlib.asynccontextmanager
async def stub_of(daemon: Daemon, user: str) -> AsyncIterator[WorkerServiceStub]:
    """Call the daemon as a user, with nothing between the caller and the errors."""
    target = daemon.target(user)
    with contextlib.closing(WorkerChannel(*target.resolve(), target.tls())) as channel:
        yield WorkerServiceStub(channel)


async def failure(call: Awaitable[None], job_id: str) -> tuple[Status, str, object]:
    """Make a call that fails, and give the whole error with the job's id taken out."""
    with pytest.raises(GRPCError) as raised:
        await call
    assert raised.value.message is not None
    return raised.value.status, raised.value.message.replace(job_id, "<id>"), raised.value.details


async def spawn(client: Client, *command: str, name: str = "", request_key: str = "") -> str:
    """Start a job."""
    program, *args = command
    return await client.spawn(SpawnRequest(program=program, args=args, name=name, request_key=request_key))


async def wait_printed(client: Client, job_id: str) -> None:
    """Wait until a job has printed something."""
    async with contextlib.aclosing(client.stream_log(job_id)) as events:
        async for event in events:
            assert isinstance(event, Output)
            return


async def ids(client: Client) -> list[str]:
    """List a user's jobs."""
    return [job.id async for job in client.list_jobs()]


async def user_of(client: Client) -> User:
    """Ask who a client is."""
    answer = await client.whoami()
    assert answer.user is not None
    return answer.user


@pytest.mark.parametrize("call", CALLS)
async def test_another_user_s_job_is_told_just_like_one_that_does_not_exist(
    shared_daemon: Daemon, other: str, call: Callable[[WorkerServiceStub, str], Awaitable[None]]
) -> None:
    nobody_s = str(uuid.uuid4())
    async with shared_daemon.client() as owner, stub_of(shared_daemon, other) as stub:
        job_id = await spawn(owner, *SPINNER)
        await wait_printed(owner, job_id)
        denied, missing = await failure(call(stub, job_id), job_id), await failure(call(stub, nobody_s), nobody_s)
        assert denied == missing
        code, sentence, details = denied
        assert code is Status.NOT_FOUND
        assert sentence.startswith("there is no job <id>")
        assert details == [ErrorDetail(reason=ErrorReason.JOB_NOT_FOUND, subject="job_id")]
        assert (await owner.status(job_id)).end is None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("damage", ["journal", "state", "cut", "index", "newer", "shares", "half made"])
async def test_what_is_wrong_with_a_job_is_its_owner_s_affair(
    shared_daemon: Daemon, other: str, damage: str, call: Callable[[WorkerServiceStub, str], Awaitable[None]]
) -> None:
    nobody_s = str(uuid.uuid4())
    async with (
        shared_daemon.client() as owner,
        stub_of(shared_daemon, USER) as owners,
        stub_of(shared_daemon, other) as stub,
    ):
        job_id = await spawn(owner, "head", "-c", "5000", "/dev/zero")  # more than a journal could mend
        _ = [event async for event in owner.stream_log(job_id)]
        folder = shared_daemon.folder(job_id)
        wait_until(lambda: folder.read().is_told, "the keeper has not come to the job's end")
        wait_unlocked(folder)  # or it might be taken for one that is on its way
        journal = folder.journal.read_bytes()
        first = 8 + int.from_bytes(journal[:4], "little")  # where its first record ends
        match damage:
            case "journal" | "index" | "shares":
                (folder.path / damage).write_bytes(b"[damaged")
            case "state":
                folder.journal.write_bytes(journal[:first] + b"[damaged" + journal[first + 8 :])
            case "cut":
                os.truncate(folder.journal, first)
            case "newer":
                folder.journal.write_bytes(b"of another kind")
                folder.spec.unlink()  # which is one file for all jobs
                folder.spec.write_bytes(b'{"format":1000}')
            case "half made":
                os.truncate(folder.journal, first)
                folder.output.unlink()
                folder.index.unlink()
        denied, missing = await failure(call(stub, job_id), job_id), await failure(call(stub, nobody_s), nobody_s)
        assert denied == missing
        assert denied[0] is Status.NOT_FOUND
        if damage in ("shares", "half made"):
            return
        if call is remove and damage != "newer":
            await call(owners, job_id)
            assert not folder.path.exists()
        else:
            code, _, _ = await failure(call(owners, job_id), job_id)
            assert code is (Status.PERMISSION_DENIED if call is explain else Status.DATA_LOSS)


async def test_no_time_tells_another_user_s_job_from_one_that_does_not_exist(shared_daemon: Daemon, other: str) -> None:
    """As far as a median of many calls through one connection can tell."""
    async with shared_daemon.client() as owner, stub_of(shared_daemon, other) as stub:
        job_id, nobody_s = await spawn(owner, *SPINNER), str(uuid.uuid4())
        ratios: list[float] = []
        while len(ratios) < 3:
            ratios.append(await compare_times(stub, job_id, nobody_s))
            if 0.8 < ratios[-1] < 1.25:
                return
    pytest.fail(f"each time it took another time: {ratios}")


async def compare_times(stub: WorkerServiceStub, first: str, second: str) -> float:
    """Return how long calls for one unseen job take, as a multiple of those for another."""
    times: dict[str, list[float]] = {first: [], second: []}
    for number in range(420):
        job_id = (first, second)[number % 2]
        begun = time.perf_counter()
        with contextlib.suppress(GRPCError):
            await status(stub, job_id)
        times[job_id].append(time.perf_counter() - begun)
    return statistics.median(times[first][10:]) / statistics.median(times[second][10:])


@pytest.mark.parametrize("arguments", [("status",), ("stop",), ("stream-log", "--past-events", "--no-follow")])
async def test_workerctl_tells_another_user_s_job_just_like_one_that_does_not_exist(
    shared_daemon: Daemon, other: str, arguments: tuple[str, ...]
) -> None:
    nobody_s = str(uuid.uuid4())
    async with shared_daemon.client() as owner:
        job_id = await spawn(owner, *SPINNER)
    denied, missing = (shared_daemon.workerctl(*arguments, "--uuid", tried, user=other) for tried in (job_id, nobody_s))
    assert (denied.returncode, denied.stdout, missing.returncode, missing.stdout) == (123, b"", 123, b"")
    assert denied.stderr.replace(job_id.encode(), b"<id>") == missing.stderr.replace(nobody_s.encode(), b"<id>")


async def test_upper_case_does_not_reach_another_user_s_job(shared_daemon: Daemon, other: str) -> None:
    async with shared_daemon.client() as owner, stub_of(shared_daemon, other) as stub:
        job_id = (await spawn(owner, "true")).upper()
        code, _, _ = await failure(status(stub, job_id), job_id)
    assert code is Status.NOT_FOUND


async def test_list_shows_own_jobs_only(shared_daemon: Daemon, other: str) -> None:
    async with shared_daemon.client() as owner, shared_daemon.client(other) as stranger:
        name = str(uuid.uuid4())
        owners = await spawn(owner, "true", name=name)
        assert await ids(stranger) == []
        strangers = await spawn(stranger, "true", name=name)
        assert await ids(stranger) == [strangers]
        assert owners in await ids(owner)
        assert strangers not in await ids(owner)
        assert [job.id async for job in stranger.list_jobs(name=name)] == [strangers]


async def test_page_token_of_one_user_shows_another_nothing(shared_daemon: Daemon, other: str) -> None:
    async def page(stub: WorkerServiceStub, token: str) -> ListResponse:
        return await stub.list(ListRequest(page_size=1, page_token=token))

    async with (
        shared_daemon.client() as owner,
        shared_daemon.client(other) as stranger,
        stub_of(shared_daemon, USER) as owner_stub,
        stub_of(shared_daemon, other) as stub,
    ):
        await spawn(owner, "true")
        strangers = await spawn(stranger, "true")
        await spawn(owner, "true")
        token = (await page(owner_stub, "")).next_page_token
        assert token
        assert (await page(owner_stub, token)).jobs
        answer = await page(stub, token)  # its own older job, and nothing that the token was made for
        assert ([job.id for job in answer.jobs], answer.next_page_token) == ([strangers], "")


async def test_request_key_of_one_user_finds_no_job_of_another(shared_daemon: Daemon, other: str) -> None:
    key = str(uuid.uuid4())
    async with shared_daemon.client() as owner, shared_daemon.client(other) as stranger:
        jobs = [await spawn(client, "true", request_key=key) for client in (owner, stranger, owner, stranger)]
        assert jobs[:2] == jobs[2:]
        assert jobs[0] != jobs[1]
        assert await ids(stranger) == [jobs[1]]


async def test_renamed_user_keeps_its_jobs(shared_daemon: Daemon, other: str) -> None:
    async with shared_daemon.client(other) as before:
        job_id = await spawn(before, *SPINNER)
        await wait_printed(before, job_id)
        user = await user_of(before)
    shared_daemon.pki.issue_client(f"{other}-married", user_id=user.id)
    async with shared_daemon.client(f"{other}-married") as after:
        assert await user_of(after) == User(id=user.id, name=f"{other}-married")
        assert await ids(after) == [job_id]
        assert (await after.status(job_id)).owner == user  # the name of the time
        await after.stop(job_id)
        events = [event async for event in after.stream_log(job_id)]
        assert isinstance(events[0], Output)
        assert events[0].data == b"secret\n"
        end = events[-1]
        assert isinstance(end, JobEnd)
        assert end.stopped is not None
        assert end.stopped.by == User(id=user.id, name=f"{other}-married")


async def test_new_user_with_a_used_name_inherits_nothing(shared_daemon: Daemon, other: str) -> None:
    key = str(uuid.uuid4())
    async with shared_daemon.client(other) as gone:
        job_id = await spawn(gone, "true", request_key=key)
        gone_user = await user_of(gone)
    certificate = shared_daemon.pki.client_certificate(other)
    certificate.unlink()
    key_path(certificate).unlink()
    shared_daemon.pki.issue_client(other, new_user=True)
    async with shared_daemon.client(other) as heir, stub_of(shared_daemon, other) as stub:
        user = await user_of(heir)
        assert (user.name, user.id == gone_user.id) == (other, False)
        assert await ids(heir) == []
        for call in CALLS:
            code, _, _ = await failure(call(stub, job_id), job_id)
            assert code is Status.NOT_FOUND
        assert await spawn(heir, "true", request_key=key) != job_id


async def test_whose_a_job_is_outlives_the_daemon(daemon: Daemon) -> None:
    daemon.pki.issue_client("other")
    async with daemon.client() as owner, daemon.client("other") as stranger:
        owners = await owner.status(await spawn(owner, "true"))
        strangers = await stranger.status(await spawn(stranger, "true"))
    daemon.stop()
    (daemon.state / "catalog.sqlite").unlink()  # it is made again from the folders
    daemon.start()
    for user, own, foreign in ((USER, owners, strangers), ("other", strangers, owners)):
        async with daemon.client(user) as client, stub_of(daemon, user) as stub:
            assert (await client.status(own.id)).owner == own.owner
            code, _, _ = await failure(status(stub, foreign.id), foreign.id)
            assert code is Status.NOT_FOUND
            assert foreign.id not in await ids(client)
