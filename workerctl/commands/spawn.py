"""spawn: start a program and leave."""

import uuid
from typing import Annotated

from cyclopts import Parameter

from workerctl.output import print_line
from workerctl.parameters import (
    Arguments,
    CommandLine,
    Environment,
    Injected,
    Label,
    Output,
    ProgramPath,
    Timeout,
    WorkingDirectory,
)
from workerctl.spawning import make_request


async def spawn(
    *command: CommandLine,
    program_path: ProgramPath = "",
    args: Arguments = None,
    envs: Environment = None,
    working_directory: WorkingDirectory = "",
    name: Label = "",
    timeout_seconds: Timeout = None,
    request_key: Annotated[
        str, Parameter(help="Starting again with the same key finds the first job.", show_default=False)
    ] = "",
    output: Output = "text",
    context: Injected,
) -> None:
    """Start a program and print the job's id.

    Example: `workerctl spawn -- /usr/bin/make -C /src test`
    """
    request = make_request(command, program_path, args, envs, working_directory, name, timeout_seconds)
    request.request_key = request_key or str(uuid.uuid4())
    async with context.client() as client:
        job_id = await client.spawn(request)
    print_line(f'{{"job_id": "{job_id}"}}' if output == "json" else job_id)
