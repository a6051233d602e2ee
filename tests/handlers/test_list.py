"""List."""

import pytest
from worker_api.worker.v1 import ErrorReason, JobState, ListRequest, ListResponse, SpawnRequest, WorkerServiceStub

from tests.daemon import Daemon
from workerctl.client import Client
from workerctl.errors import CallFailed


async def get_page(client: Client, request: ListRequest) -> ListResponse:
    return await client.call(lambda channel: WorkerServiceStub(channel).list(request))


async def test_pages_hold_every_job_once_and_newest_first(daemon: Daemon) -> None:
    async with daemon.client() as client:
        ids = [await client.spawn(SpawnRequest(program="true")) for _ in range(7)]
        listed: list[str] = []
        request = ListRequest(page_size=3)
        sizes: list[int] = []
        while True:
            page = await get_page(client, request)
            sizes.append(len(page.jobs))
            listed += [job.id for job in page.jobs]
            if not page.next_page_token:
                break
            request = ListRequest(page_size=3, page_token=page.next_page_token)
    assert listed == ids[::-1]
    assert sizes == [3, 3, 1]


async def test_jobs_are_chosen_by_state_and_by_name(daemon: Daemon) -> None:
    async with daemon.client() as client:
        running = await client.spawn(SpawnRequest(program="sleep", args=["1000"], name="long"))
        ended = await client.spawn(SpawnRequest(program="true", name="short"))
        async for _ in client.stream_log(ended):
            pass
        assert [job.id async for job in client.list_jobs([JobState.RUNNING])] == [running]
        assert [job.id async for job in client.list_jobs([JobState.ENDED])] == [ended]
        assert [job.id async for job in client.list_jobs(name="long")] == [running]
        assert [job.id async for job in client.list_jobs([JobState.ENDED], name="long")] == []


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ListRequest(page_size=1001), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_size=-1), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_token="nonsense"), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_token=f"{'9' * 30}.x"), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(page_token="5.x"), ErrorReason.ARGUMENT_INVALID),
        (ListRequest(states=[JobState.UNSPECIFIED]), ErrorReason.ARGUMENT_INVALID),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_impossible_requests_are_refused(
    shared_daemon: Daemon, request_: ListRequest, reason: ErrorReason
) -> None:
    async with shared_daemon.client() as client:
        with pytest.raises(CallFailed) as caught:
            await get_page(client, request_)
    assert caught.value.reason is reason
