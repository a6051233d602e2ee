"""Spawn: start a program."""

from worker_api.worker.v1 import SpawnRequest, SpawnResponse, WorkerServiceBase

from workerd.engine import request as engine
from workerd.handler import Call, handles
from workerd.translate import user_of


@handles(WorkerServiceBase, "Spawn", right="spawn")
async def spawn(call: Call, request: SpawnRequest) -> SpawnResponse:
    """Start a job for the caller."""
    job_id = await call.engine.spawn(
        engine.SpawnRequest(
            owner=user_of(call.identity),
            program=request.program,
            args=tuple(request.args),
            envs=request.envs,
            working_directory=request.working_directory,
            name=request.name,
            timeout_seconds=None if request.timeout is None else request.timeout.total_seconds(),
            grace_seconds=call.grace_seconds,
            request_key=request.request_key,
            max_log_bytes=request.max_log_bytes,
        )
    )
    return SpawnResponse(job_id=job_id)
