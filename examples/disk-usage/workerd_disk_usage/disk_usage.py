"""disk-usage: show how much of the daemon's disk your output takes."""

from workerctl.output import print_result
from workerctl.parameters import Injected, Output, Uuid
from workerd_disk_usage._pb.diskusage.v1 import DiskUsageServiceStub, MeasureRequest


async def disk_usage(uuid: Uuid, *, output: Output = "text", context: Injected) -> None:
    """Show how much of the daemon's disk the output of a job takes, and that of all of your jobs.

    Example: `workerctl disk-usage --uuid 123e4567-e89b-42d3-a456-426614174000`
    """
    request = MeasureRequest(job_id=uuid)
    async with context.client() as client:
        usage = await client.call(lambda channel: DiskUsageServiceStub(channel).measure(request))
    text = f"{usage.job_bytes} bytes, of {usage.all_bytes} bytes in all; your jobs: {usage.job_count}"
    print_result(usage, text, output)
