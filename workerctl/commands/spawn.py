"""spawn: start a program and leave."""

import json
from typing import Annotated

from cyclopts import Parameter

from workerctl.parameters import CommandLine, Injected, Output
from workerctl.spawning import JobOptions, print_started


async def spawn(
    *command: CommandLine,
    options: JobOptions = JobOptions(),
    request_key: Annotated[
        str, Parameter(help="Starting again with the same key finds the first job.", show_default=False)
    ] = "",
    output: Output = "text",
    context: Injected,
) -> None:
    """Start a program and print the job's id.

    Example: `workerctl spawn -- /usr/bin/make -C /src test`
    """
    request = options.request(command, request_key)
    async with context.client() as client:
        job_id = await client.spawn(request)
    print_started(job_id, json.dumps({"job_id": job_id}) if output == "json" else job_id)
