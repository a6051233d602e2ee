"""Stop."""

from datetime import timedelta

import pytest
from worker_api.worker.v1 import ErrorReason, JobEnd, JobState, SpawnRequest, Stopped

from tests.daemon import USER, Daemon
from workerctl.errors import CallFailed


async def test_stop_answers_with_the_job_and_the_end_names_who_asked(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="sleep", args=["1000"]))
        job = await client.stop(job_id)
        assert job.state in (JobState.STOPPING, JobState.ENDED)
        events = [event async for event in client.stream_log(job_id)]
        again = await client.stop(job_id)
    end = events[-1]
    assert isinstance(end, JobEnd)
    assert isinstance(end.stopped, Stopped)
    assert end.stopped.by is not None
    assert end.stopped.by.name == USER
    assert (end.stopped.signal, end.stopped.killed_by_signal, end.stopped.exit_code) == (15, 15, None)
    assert again.end == end, "stopping an ended job is no error, and changes nothing"


async def test_a_negative_grace_is_refused(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="true"))
        with pytest.raises(CallFailed) as caught:
            await client.stop(job_id, timedelta(seconds=-1))
    assert caught.value.reason is ErrorReason.ARGUMENT_INVALID
