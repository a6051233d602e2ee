"""Status: describe a job."""

from worker_api.worker.v1 import StatusRequest, WorkerServiceBase

from workerd.access.policy import On
from workerd.handler import Call, handles
from workerd.network.codec import Encoded
from workerd.network.job_encoding import encode_status


@handles(WorkerServiceBase, "Status", right="status", further={"show-envs": On.JOB}, reads=True)
async def status(call: Call, request: StatusRequest) -> Encoded:
    """Describe the job as it stands."""
    job = call.require_job()
    if request.show_envs:
        call.authorize("show-envs")
    return await encode_status(job, with_envs=request.show_envs, pause=call.pause)
