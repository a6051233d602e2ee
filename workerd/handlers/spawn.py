"""Spawn: start a program."""

from typing import Any

from worker_api.worker.v1 import SpawnRequest, SpawnResponse, WorkerServiceBase

from workerd.access.policy import RUN_AS, SPAWN, On
from workerd.engine import request as engine
from workerd.engine.errors import JobNotFound, SpoolCorrupt
from workerd.handler import Call, handles


def _describe(request: SpawnRequest) -> dict[str, Any]:
    """Give what the audit trail tells of a job; what its environment variables hold does not belong there."""
    return {
        "program": request.program,
        "args": list(request.args),
        "envs": sorted(request.envs),
        "working_directory": request.working_directory,
        "name": request.name,
        **({"run_as": request.run_as} if request.run_as else {}),
    }


@handles(WorkerServiceBase, "Spawn", right=SPAWN, further={RUN_AS: On.ACCOUNT}, audit=_describe)
async def spawn(call: Call, request: SpawnRequest) -> SpawnResponse:
    """Start a job for the caller."""
    engine.check_label("run_as", request.run_as)  # what is decided on is remembered
    account = call.authorize_account(request.run_as)
    job_id = await call.engine.spawn(
        engine.SpawnRequest(
            owner=call.caller.user,
            program=request.program,
            args=tuple(request.args),
            envs=request.envs,
            working_directory=request.working_directory,
            name=request.name,
            timeout_seconds=None if request.timeout is None else request.timeout.total_seconds(),
            grace_seconds=call.daemon.grace_seconds,
            request_key=request.request_key,
            max_log_bytes=request.max_log_bytes,
            run_as=call.daemon.accounts.to_take_on(account),
            spawned_by=call.caller.actor,
        ),
        call.is_heard,
    )
    runs_as = _account_of(call, job_id, account) if request.request_key else account
    call.caller.note("job-spawned", job_id=job_id, account=runs_as, program=request.program, args=list(request.args))
    return SpawnResponse(job_id=job_id)


def _account_of(call: Call, job_id: str, decided: str) -> str:
    """Return the account of a job that an earlier spawn may have started; the decided one if the job cannot be read."""
    try:
        return call.engine.spec(job_id).run_as or call.daemon.accounts.own
    except (JobNotFound, SpoolCorrupt):
        return decided
