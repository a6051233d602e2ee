"""What must be true when everything is over."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import xxhash
from worker_api.worker.v1 import JobEnd, Stream

from tests.faults.jobs import Job
from tests.faults.processes import processes_of_jobs, wait_until
from tests.faults.record import Record
from tests.faults.world import World
from workerctl.events import Output

_READ_SECONDS = 60.0
_GONE_SECONDS = 30.0
_STREAMS = (Stream.STDOUT, Stream.STDERR)


async def check_world(world: World) -> tuple[list[str], int]:
    """Compare everything with everything.

    Returns:
        What is wrong, for people, and how many bytes were compared.
    """
    problems = await _check_list(world)
    compared = 0
    for job in world.jobs:
        if job.id is None:
            continue  # its spawn was never answered, and it never ran
        record, end, output = await _read_anew(world, job)
        compared += record.compared_bytes
        problems += [f"{job.name}, {job.id}: {problem}" for problem in _check_job(job, record, end, output)]
        sizes = {stream: record.received.get(stream, 0) for stream in _STREAMS}
        for follower in world.followers:
            if follower.job is job:
                problems += follower.check_end(sizes, lost=job.doomed)
                compared += follower.record.compared_bytes
    return problems + await _check_nothing_lives(world) + list(_check_faults(world)), compared


async def _check_list(world: World) -> list[str]:
    """The daemon's list has every job that it has acknowledged, no job twice, and none that nobody asked for."""
    async with world.client(direct=True) as client:
        listed = [(job.name, job.id) async for job in client.list_jobs()]
    problems = [f"{name} is listed {count} times" for name, count in Counter(listed).items() if count > 1]
    names = Counter(name for name, _ in listed)
    problems += [f"there are {count} jobs of the name {name}" for name, count in names.items() if count > 1]
    known = dict(listed)
    for job in world.jobs:
        runs = job.runs()
        if len(runs) > 1:
            problems.append(f"{job.name} was executed {len(runs)} times: {runs}")
        if known.pop(job.name, None) != job.id:
            problems.append(f"{job.name} is not listed as {job.id}, though it was executed or acknowledged")
        if runs and runs[0] != job.id:
            problems.append(f"{job.name} was acknowledged as {job.id} and executed as {runs[0]}")
    return problems + [f"{name} is listed, and nobody has asked for it" for name in known]


async def _read_anew(world: World, job: Job) -> tuple[Record, JobEnd | None, bytes]:
    """Read a job's log from its first byte, and what its output file should be."""
    record = Record(job.expected)
    pieces = []
    end = None
    try:
        async with asyncio.timeout(_READ_SECONDS), world.client(direct=True) as client:
            async for event in client.stream_log(job.id or ""):
                record.event(event)
                match event:
                    case Output(data=data):
                        pieces.append(data)
                    case JobEnd():
                        end = event
    except TimeoutError:
        record.problems.append(f"waited {_READ_SECONDS} s for a fresh reader; it came to byte {record.position}")
    return record, end, b"".join(pieces)


def _check_job(job: Job, record: Record, end: JobEnd | None, output: bytes) -> Iterator[str]:
    yield from record.problems
    if job.folder.output.read_bytes() != output:
        yield "its output file is not what was read"
    if end is None:
        yield "its log has no end"
        return
    if job.doomed != (end.lost is not None):
        yield f"its supervisor was {'' if job.doomed else 'not '}killed, and it ended so: {end}"
    elif not job.doomed and (end.exited is None or end.exited.code != job.plan.exit_code):
        yield f"it should have exited with {job.plan.exit_code}, and ended so: {end}"
    for summary in end.streams:
        stream = Stream(summary.stream)
        size, written = record.received.get(stream, 0), job.expected[stream]
        if size != summary.size_bytes:
            yield f"{stream.name} has {size} bytes, and its end says {summary.size_bytes}"
        if xxhash.xxh3_128(written[:size]).digest() != summary.xxh3_128:
            yield f"{stream.name} has another digest than its end says"
        if size != len(written) and not job.doomed:
            yield f"{stream.name} has {size} bytes, and the job wrote {len(written)}"
    if {summary.stream for summary in end.streams} != set(_STREAMS):
        yield "its end does not tell of both streams"


async def _check_nothing_lives(world: World) -> list[str]:
    """No process of any job is left."""
    ids = world.job_ids()
    try:
        await wait_until(lambda: not any(processes_of_jobs(ids)), "the jobs' processes to be gone", _GONE_SECONDS)
    except TimeoutError:
        return [f"process {pid} of {ids[job_id].name} lives on" for pid, job_id in processes_of_jobs(ids)]
    return []


def _check_faults(world: World) -> Iterator[str]:
    """Nobody has met with what should not be: the daemon has no traceback to show, and no supervisor any fault."""
    if "Traceback" in (errors := world.daemon.errors()):
        yield f"the daemon has said: {errors[errors.index('Traceback') :][:4000]}"
    for job_id, job in world.job_ids().items():
        if fault := (world.daemon.folder(job_id)).read_fault():
            yield f"the supervisor of {job.name} has said: {fault[:2000]}"
