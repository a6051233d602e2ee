"""Remove: delete a job that has ended."""

from worker_api.worker.v1 import RemoveRequest, RemoveResponse, WorkerServiceBase

from workerd.handler import Call, handles


@handles(WorkerServiceBase, "Remove", right="remove")
async def remove(call: Call, request: RemoveRequest) -> RemoveResponse:  # noqa: ARG001
    """Delete the job with its log."""
    await call.engine.remove(call.require_job_id())
    return RemoveResponse()
