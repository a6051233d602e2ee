"""Measure: count the bytes that the output of a job takes."""

import asyncio

from workerd.handler import Call, handles
from workerd_disk_usage._pb.diskusage.v1 import DiskUsageServiceBase, MeasureRequest, MeasureResponse

_PAGE_SIZE = 100


@handles(DiskUsageServiceBase, "Measure", right="measure")
async def measure(call: Call, request: MeasureRequest) -> MeasureResponse:  # noqa: ARG001
    """Count the bytes of one job's output, and of the output of all jobs of its owner."""
    job = call.require_job()
    response = MeasureResponse(job_bytes=job.stdout_bytes + job.stderr_bytes)
    position = None
    while True:
        page = await call.engine.list_jobs(call.identity.user_id, states=(), name="", size=_PAGE_SIZE, after=position)
        response.all_bytes += sum(each.stdout_bytes + each.stderr_bytes for each in page.jobs)
        response.job_count += len(page.jobs)
        position = page.next
        if position is None:
            return response
        await asyncio.sleep(0)  # an owner of many jobs leaves the other callers their turn
