"""Status: describe a job."""

from worker_api.worker.v1 import StatusRequest, StatusResponse, WorkerServiceBase

from workerd.access.policy import On
from workerd.handler import Call, handles
from workerd.translate import to_job


@handles(WorkerServiceBase, "Status", right="status", further={"show-envs": On.JOB}, reads=True)
async def status(call: Call, request: StatusRequest) -> StatusResponse:
    """Describe the job as it stands."""
    job = call.require_job()
    description = to_job(job)
    if request.show_envs:
        call.authorize("show-envs")
        description.envs = dict(job.spec.envs)
    return StatusResponse(job=description)
