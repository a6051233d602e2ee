"""Our side: what benchmarks do with a daemon again and again."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from worker_api.worker.v1 import Job, JobEnd, SpawnRequest, Stream

from benchmarks.check import Damaged, require
from tests.daemon import USER, Daemon
from workerctl.client import Client

T = TypeVar("T")

WORKERCTL = Path(sys.executable).with_name("workerctl")


def workerctl(daemon: Daemon, *arguments: str) -> list[str]:
    """Make the command line of the workerctl that is installed beside this Python."""
    options = ("--endpoint", daemon.endpoint, "--username", USER, "--pki-dir", str(daemon.pki.path))
    return [str(WORKERCTL), *options, *arguments]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run what talks to a daemon through the library."""
    return asyncio.run(work)


async def end_of(client: Client, job_id: str) -> JobEnd:
    """Wait until a job has ended, without reading what it prints to standard output."""
    async for event in client.stream_log(job_id, streams=(Stream.STDERR,)):
        if isinstance(event, JobEnd):
            return event
    raise AssertionError("a log that is followed comes to its end")


async def run_to_end(client: Client, program: str, *arguments: str) -> str:
    """Run a job that has to succeed, and return its id."""
    job_id = await client.spawn(SpawnRequest(program=program, args=list(arguments)))
    end = await end_of(client, job_id)
    require(end.exited is not None and end.exited.code == 0, f"{program} did not exit with 0")
    return job_id


async def newest_job(client: Client) -> Job:
    """Describe the job that was started last."""
    async for job in client.list_jobs():
        return job
    raise AssertionError("no job was started")


def require_recorded(job: Job, stream: Stream, size_bytes: int, digest: bytes) -> None:
    """Check what a job is said to have written to a stream.

    Raises:
        Damaged: it is something else.
    """
    [summary] = [each for each in job.end.streams if each.stream is stream] if job.end is not None else [None]
    if summary is None:
        raise Damaged(f"job {job.id} has not ended")
    require(summary.size_bytes == size_bytes, f"{summary.size_bytes} bytes were captured instead of {size_bytes}")
    require(summary.xxh3_128 == digest, "the bytes that were captured are not those that were written")
