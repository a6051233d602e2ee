"""status: describe a job."""

from typing import Annotated

from cyclopts import Parameter

from workerctl.output import print_job
from workerctl.parameters import Injected, Output, Uuid


async def status(
    uuid: Uuid,
    *,
    show_envs: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Show the environment variables of the spawn too.")
    ] = False,
    output: Output = "text",
    context: Injected,
) -> None:
    """Describe a job: what it runs, where it stands, how it ended.

    Example: `workerctl status --uuid 123e4567-e89b-42d3-a456-426614174000`
    """
    async with context.client() as client:
        job = await client.status(uuid, show_envs=show_envs)
    print_job(job, output, with_envs=show_envs)
