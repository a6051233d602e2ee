"""Status."""

from datetime import timedelta

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, JobState, SpawnRequest

from tests.daemon import USER, Daemon
from workerctl.errors import CallFailed, JobNotFound
from workerctl.events import Output


async def test_a_running_job_is_described(shared_daemon: Daemon) -> None:
    wish = SpawnRequest(
        program="sh",
        args=["-c", "printf out; printf error >&2; exec sleep 1000"],
        name="label",
        working_directory="/sys",
        timeout=timedelta(seconds=900),
    )
    async with shared_daemon.client() as client:
        job_id = await client.spawn(wish)
        received = 0
        async for event in client.stream_log(job_id):
            assert isinstance(event, Output)
            received += len(event.data)
            if received == 8:
                break
        job = await client.status(job_id)
        await client.stop(job_id, timedelta(0))
    assert (job.id, job.name, job.program, job.args) == (job_id, "label", "sh", wish.args)
    assert (job.working_directory, job.timeout, job.state) == ("/sys", timedelta(seconds=900), JobState.RUNNING)
    assert (job.stdout_bytes, job.stderr_bytes) == (3, 5)
    assert job.owner is not None
    assert job.owner.name == USER
    assert job.pid > 0
    assert job.end is None
    assert job.created_at is not None
    assert job.started_at is not None
    assert job.created_at <= job.started_at


async def test_ids_that_are_none_are_told_from_ids_of_no_job(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        for malformed in ("", "nope", "../../../etc/passwd", "0" * 32):
            with pytest.raises(CallFailed) as caught:
                await client.status(malformed)
            assert caught.value.status is Status.INVALID_ARGUMENT
            assert caught.value.reason is ErrorReason.JOB_ID_MALFORMED
        with pytest.raises(JobNotFound) as unknown:
            await client.status("00000000-0000-4000-8000-000000000000")
        assert unknown.value.status is Status.NOT_FOUND
