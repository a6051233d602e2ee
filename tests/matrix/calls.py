"""Every call in the matrix: how it is made, what comes of it, and what is told when it is permitted."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from worker_api.worker.v1 import (
    ExplainDecisionRequest,
    IssueCredentialRequest,
    ListRequest,
    RemoveRequest,
    ShareRequest,
    SpawnRequest,
    StatusRequest,
    StopRequest,
    StreamLogRequest,
    WhoAmIRequest,
    WorkerServiceStub,
)

from pki.narrowing import make_key, make_request
from tests.daemon import USER
from tests.matrix.callers import SECRET, SHARED, SOMEBODY, World
from workerctl.transport import WorkerChannel

NOBODYS = "00000000-0000-4000-8000-000000000000"
Make = Callable[[WorkerServiceStub, str], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Wish:
    """One call.

    Attributes:
        make: makes it, of a job.
        job: gives the job that it is made of; None if it concerns none.
        changes: whether it changes something when it is permitted.
        tells: whether an answer is what was asked for.
    """

    make: Callable[[WorkerChannel, str], Awaitable[Any]]
    job: Callable[[World], Awaitable[str]] | None = None
    changes: bool = False
    tells: Callable[[Any], bool] = lambda _: True


async def standing(world: World) -> str:
    return world.standing


async def running(world: World) -> str:
    return await world.start()


async def ended(world: World) -> str:
    return await world.run()


async def absent(world: World) -> str:
    del world
    return NOBODYS


async def _stream_log(stub: WorkerServiceStub, job_id: str) -> bytes:
    pieces = [answer.output.data async for answer in stub.stream_log(StreamLogRequest(job_id=job_id)) if answer.output]
    return b"".join(pieces)


async def _measure(channel: WorkerChannel, job_id: str) -> Any:
    # The example is no part of what is installed: it is found once a test has put it on the path.
    from workerd_disk_usage._pb.diskusage.v1 import DiskUsageServiceStub, MeasureRequest

    return await DiskUsageServiceStub(channel).measure(MeasureRequest(job_id=job_id))


def _stub(make: Make) -> Callable[[WorkerChannel, str], Awaitable[Any]]:
    return lambda channel, job_id: make(WorkerServiceStub(channel), job_id)


def _is_job(answer: Any) -> bool:
    return bool(answer.job.program == "sh" and answer.job.owner.name == USER)


def _status(*, show_envs: bool = False) -> Callable[[WorkerChannel, str], Awaitable[Any]]:
    return _stub(lambda stub, job_id: stub.status(StatusRequest(job_id=job_id, show_envs=show_envs)))


def _list(*, all_owners: bool) -> Callable[[WorkerChannel, str], Awaitable[Any]]:
    return _stub(lambda stub, _: stub.list(ListRequest(all_owners=all_owners, page_size=1000)))


def _explain(**of: str) -> Callable[[WorkerChannel, str], Awaitable[Any]]:
    return _stub(lambda stub, _: stub.explain_decision(ExplainDecisionRequest(**of)))


def wishes(account: str, other: str) -> dict[str, Wish]:
    """Give all calls, by what they are called in the table.

    Args:
        account: the system account that the daemon runs as, which it can run jobs as whoever it is.
        other: another one, which it can run jobs as if it is root.
    """
    true = SpawnRequest(program="true")
    as_account = SpawnRequest(program="true", run_as=account)
    as_other = SpawnRequest(program="true", run_as=other, working_directory="/")
    for_somebody = {"workerd-username": SOMEBODY}
    stop = _stub(lambda stub, job_id: stub.stop(StopRequest(job_id=job_id)))
    share = ShareRequest(user=SOMEBODY, rights=["status"])
    credential = IssueCredentialRequest(certificate_request=make_request(make_key("p256")), rights=["status"])
    return {
        "`Spawn`": Wish(_stub(lambda stub, _: stub.spawn(true)), changes=True),
        "`Spawn` with `run_as`, the default account": Wish(_stub(lambda stub, _: stub.spawn(as_account)), changes=True),
        "`Spawn` with `run_as`, another account": Wish(_stub(lambda stub, _: stub.spawn(as_other)), changes=True),
        "`Spawn` for somebody else": Wish(_stub(lambda stub, _: stub.spawn(true, metadata=for_somebody)), changes=True),
        "`Status`": Wish(_status(), standing, tells=lambda answer: _is_job(answer) and not answer.job.envs),
        "`Status` with `show_envs`": Wish(
            _status(show_envs=True), standing, tells=lambda answer: _is_job(answer) and answer.job.envs == SECRET
        ),
        "`Status` with `show_envs`, for the owner": Wish(
            _stub(
                lambda stub, job_id: stub.status(
                    StatusRequest(job_id=job_id, show_envs=True), metadata={"workerd-username": USER}
                )
            ),
            standing,
            tells=lambda answer: _is_job(answer) and answer.job.envs == SECRET,
        ),
        "`Status` of no job": Wish(_status(), absent),
        "`StreamLog`": Wish(_stub(_stream_log), standing, tells=lambda answer: answer == b"ready\n"),
        "`Stop`": Wish(stop, running, changes=True, tells=_is_job),
        "`Stop` of no job": Wish(stop, absent, changes=True),
        "`Remove`": Wish(_stub(lambda stub, job_id: stub.remove(RemoveRequest(job_id=job_id))), ended, changes=True),
        "`Share`": Wish(
            _stub(lambda stub, job_id: stub.share(ShareRequest(job_id, share.user, share.rights))),
            running,
            changes=True,
            tells=lambda answer: len(answer.shares) == 2,
        ),
        "`Share`, only to look": Wish(
            _stub(lambda stub, job_id: stub.share(ShareRequest(job_id=job_id))),
            standing,
            tells=lambda answer: [tuple(each.rights) for each in answer.shares] == [SHARED],
        ),
        "`List`": Wish(_list(all_owners=False)),
        "`List` of all owners": Wish(_list(all_owners=True)),
        "`WhoAmI`": Wish(
            _stub(lambda stub, _: stub.who_am_i(WhoAmIRequest())), tells=lambda answer: "list" in answer.rights
        ),
        "`IssueCredential`": Wish(
            _stub(lambda stub, _: stub.issue_credential(credential)), tells=lambda answer: bool(answer.certificate)
        ),
        "`ExplainDecision` of a job": Wish(
            _stub(lambda stub, job_id: stub.explain_decision(ExplainDecisionRequest(right="stop", job_id=job_id))),
            standing,
            tells=lambda answer: answer.permitted,
        ),
        "`ExplainDecision` of no job": Wish(_explain(right="spawn"), tells=lambda answer: answer.permitted),
        "`Measure`, a plugin's": Wish(_measure, standing, tells=lambda answer: answer.job_bytes == len("ready\n")),
    }
