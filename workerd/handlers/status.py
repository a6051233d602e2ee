"""Status: describe a job."""

from worker_api.worker.v1 import StatusRequest, StatusResponse, WorkerServiceBase

from workerd.handler import Call, handles
from workerd.policy import On
from workerd.translate import to_job


@handles(WorkerServiceBase, "Status", right="status", further={"show-envs": On.JOB}, reads=True)
async def status(call: Call, request: StatusRequest) -> StatusResponse:  # noqa: ARG001
    """Describe the job as it stands."""
    return StatusResponse(job=to_job(call.require_job()))
