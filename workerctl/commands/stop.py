"""stop: end a job and everything that it started."""

from typing import Annotated

from cyclopts import Parameter

from workerctl.durations import read_seconds, to_duration
from workerctl.output import print_job
from workerctl.parameters import Injected, Output, Uuid


async def stop(
    uuid: Uuid,
    *,
    grace_seconds: Annotated[
        float | None,
        Parameter(converter=read_seconds, help="Between SIGTERM and SIGKILL; 0 kills at once. [default: the daemon's]"),
    ] = None,
    output: Output = "text",
    context: Injected,
) -> None:
    """Stop a job: SIGTERM to all of its processes, SIGKILL to what is left when the program ended or the grace is over.

    Example: `workerctl stop --uuid 123e4567-e89b-42d3-a456-426614174000 --grace-seconds 2`
    """
    grace = None if grace_seconds is None else to_duration("--grace-seconds", grace_seconds)
    async with context.client() as client:
        job = await client.stop(uuid, grace)
    print_job(job, output)
