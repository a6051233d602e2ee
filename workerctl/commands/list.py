"""list: show your jobs."""

import contextlib
import json
from typing import Annotated, Literal

from cyclopts import Parameter
from worker_api.worker.v1 import Job, JobState

from workerctl.errors import UsageInvalid
from workerctl.output import describe_jobs, job_to_plain
from workerctl.parameters import Injected, Output
from workerctl.terminal import print_line, print_lines, warn

State = Literal["starting", "running", "stopping", "ended", "damaged"]


async def list_jobs(
    *,
    state: Annotated[
        list[State] | None, Parameter(negative=(), help="Only jobs in this state; may be repeated.")
    ] = None,
    name: Annotated[str, Parameter(help="Only jobs with this label.", show_default=False)] = "",
    all_owners: Annotated[
        bool, Parameter(negative=(), show_default=False, help="All users' jobs, as far as you may see them.")
    ] = False,
    limit: Annotated[int, Parameter(help="The most jobs to show.")] = 50,
    output: Output = "text",
    context: Injected,
) -> None:
    """Show your jobs, or all that you may see, newest first. With JSON, one object for each line.

    Example: `workerctl list --state running`
    """
    if limit < 1:
        raise UsageInvalid("--limit is a number of jobs, 1 or more")
    jobs: list[Job] = []
    async with context.client() as client:
        states = [JobState[word.upper()] for word in state or ()]
        async with contextlib.aclosing(client.list_jobs(states, name, all_owners=all_owners)) as found:
            async for job in found:
                if len(jobs) == limit:
                    warn(f"--limit {limit} leaves older jobs out: a larger one shows them")
                    break
                jobs.append(job)
    if output == "json":
        for job in jobs:
            print_line(json.dumps(job_to_plain(job)))
    else:
        print_lines(describe_jobs(jobs, with_owners=all_owners))
