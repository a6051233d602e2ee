"""status: describe a job."""

from workerctl.output import describe_job, print_result
from workerctl.parameters import Injected, Output, Uuid


async def status(uuid: Uuid, *, output: Output = "text", context: Injected) -> None:
    """Describe a job: what it runs, where it stands, how it ended.

    Example: `workerctl status --uuid 123e4567-e89b-42d3-a456-426614174000`
    """
    async with context.client() as client:
        job = await client.status(uuid)
    print_result(job, describe_job(job), output)
