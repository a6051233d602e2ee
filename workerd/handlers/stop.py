"""Stop: end a job and everything that it started."""

from worker_api.worker.v1 import StopRequest, StopResponse, WorkerServiceBase

from workerd.engine.errors import InvalidArgument
from workerd.engine.listing import shorten
from workerd.handler import Call, handles
from workerd.translate import to_job


@handles(WorkerServiceBase, "Stop", right="stop")
async def stop(call: Call, request: StopRequest) -> StopResponse:
    """Order the job to be stopped."""
    grace_seconds = call.daemon.grace_seconds if request.grace is None else request.grace.total_seconds()
    if grace_seconds < 0:
        raise InvalidArgument("grace", "must not be negative")
    job = await call.engine.stop(call.require_job_id(), call.caller.actor or call.caller.user, grace_seconds)
    return StopResponse(job=to_job(shorten(job)))
