"""StreamLog."""

import contextlib

import pytest
from worker_api.worker.v1 import (
    ErrorReason,
    LogAnchor,
    SpawnRequest,
    Stream,
    StreamLogRequest,
    StreamLogResponse,
    WorkerServiceStub,
)

from tests.daemon import Daemon
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.transport import WorkerChannel


async def stream(client: Client, request: StreamLogRequest) -> list[StreamLogResponse]:
    async def read(channel: WorkerChannel) -> list[StreamLogResponse]:
        return [event async for event in WorkerServiceStub(channel).stream_log(request)]

    return await client.call(read)


async def an_ended_job(client: Client) -> str:
    job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "printf 0123; printf abcd >&2; printf 4567"]))
    async for _ in client.stream_log(job_id):
        pass
    return job_id


def text_of(events: list[StreamLogResponse]) -> bytes:
    assert events[-1].end is not None
    assert all(event.end is None for event in events[:-1])
    return b"".join(event.output.data for event in events if event.output is not None)


async def test_a_log_can_be_begun_anywhere(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        job_id = await an_ended_job(client)
        whole = text_of(await stream(client, StreamLogRequest(job_id=job_id)))
        for request, start in (
            (StreamLogRequest(job_id=job_id, anchor=LogAnchor.BEGINNING), 0),
            (StreamLogRequest(job_id=job_id, anchor=LogAnchor.UNSPECIFIED), 0),
            (StreamLogRequest(job_id=job_id, anchor=LogAnchor.NOW), 12),
            (StreamLogRequest(job_id=job_id, offset_bytes=0), 0),
            (StreamLogRequest(job_id=job_id, offset_bytes=5), 5),
            (StreamLogRequest(job_id=job_id, last_bytes=3), 9),
            (StreamLogRequest(job_id=job_id, last_bytes=0), 12),
        ):
            assert text_of(await stream(client, request)) == whole[start:]


async def test_one_stream_can_be_asked_for(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        job_id = await an_ended_job(client)
        out = await stream(client, StreamLogRequest(job_id=job_id, streams=[Stream.STDOUT]))
        err = await stream(client, StreamLogRequest(job_id=job_id, streams=[Stream.STDERR]))
    assert (text_of(out), text_of(err)) == (b"01234567", b"abcd")
    assert {event.output.stream for event in err if event.output is not None} == {Stream.STDERR}


@pytest.mark.parametrize("field", ["offset_bytes", "streams", "anchor"])
async def test_impossible_requests_are_refused(shared_daemon: Daemon, field: str) -> None:
    impossible = {"offset_bytes": 13, "streams": [Stream.UNSPECIFIED], "anchor": LogAnchor(7)}
    async with shared_daemon.client() as client:
        job_id = await an_ended_job(client)
        with pytest.raises(CallFailed, match=field) as caught:
            await stream(client, StreamLogRequest(job_id=job_id, **{field: impossible[field]}))  # type: ignore[arg-type]
    assert caught.value.reason is ErrorReason.ARGUMENT_INVALID


async def test_readers_who_leave_in_the_middle_are_no_fault_of_the_daemons(daemon: Daemon) -> None:
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="head", args=["-c", "100000000", "/dev/zero"]))
        for _ in range(30):
            async with contextlib.aclosing(client.stream_log(job_id)) as events:
                await anext(events)
        await client.whoami()  # the daemon has heard of all of them
    assert "error" not in daemon.errors()
