"""Remove."""

from datetime import timedelta

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import Daemon
from workerctl.errors import CallFailed, JobNotFound
from workerctl.events import Output


async def test_a_job_that_has_ended_is_removed_with_its_log(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="echo", args=["hi"], request_key="once"))
        async for _ in client.stream_log(job_id):
            pass
        await client.remove(job_id)
        with pytest.raises(JobNotFound):
            await client.status(job_id)
        assert [job.id async for job in client.list_jobs() if job.id == job_id] == []
        assert not shared_daemon.folder(job_id).path.exists()
        with pytest.raises(JobNotFound):
            await client.remove(job_id)
        again = await client.spawn(SpawnRequest(program="echo", args=["hi"], request_key="once"))
        assert again == job_id, "the key is free again, and means the same id"
        assert [event.data async for event in client.stream_log(job_id) if isinstance(event, Output)] == [b"hi\n"]


async def test_a_job_that_runs_is_not_removed(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="sleep", args=["1000"]))
        with pytest.raises(CallFailed, match="stop it first") as caught:
            await client.remove(job_id)
        assert caught.value.status is Status.FAILED_PRECONDITION
        assert caught.value.reason is ErrorReason.JOB_NOT_ENDED
        await client.stop(job_id, timedelta(0))


async def test_nobody_removes_another_s_job(shared_daemon: Daemon) -> None:
    shared_daemon.pki.issue_client("mallory")
    async with shared_daemon.client() as client, shared_daemon.client("mallory") as stranger:
        job_id = await client.spawn(SpawnRequest(program="true"))
        async for _ in client.stream_log(job_id):
            pass
        with pytest.raises(JobNotFound):
            await stranger.remove(job_id)
        assert (await client.status(job_id)).id == job_id
