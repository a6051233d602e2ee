"""Spawn."""

from datetime import timedelta

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import Daemon
from workerctl.errors import CallFailed


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (SpawnRequest(), Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
        (SpawnRequest(program="a/b"), Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
        (SpawnRequest(program="true", timeout=timedelta(0)), Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
        (SpawnRequest(program="true", args=["\0"]), Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
        (SpawnRequest(program="true", args=["x" * 200_000]), Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
        (SpawnRequest(program="true", run_as="x" * 257), Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
        (SpawnRequest(program="nope"), Status.FAILED_PRECONDITION, ErrorReason.PROGRAM_NOT_FOUND),
        (SpawnRequest(program="/etc/passwd"), Status.FAILED_PRECONDITION, ErrorReason.PROGRAM_NOT_EXECUTABLE),
        (
            SpawnRequest(program="true", working_directory="/nope"),
            Status.FAILED_PRECONDITION,
            ErrorReason.WORKING_DIRECTORY_UNUSABLE,
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_cannot_be_started_fails_with_its_reason(
    shared_daemon: Daemon, request_: SpawnRequest, status: Status, reason: ErrorReason
) -> None:
    async with shared_daemon.client() as client:
        with pytest.raises(CallFailed) as caught:
            await client.spawn(request_)
    assert (caught.value.status, caught.value.reason) == (status, reason)
    assert "\n" not in str(caught.value)


async def test_a_repeated_key_gives_the_same_job(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        wish = SpawnRequest(program="true", request_key="again")
        assert await client.spawn(wish) == await client.spawn(wish)


async def test_a_long_request_is_refused_in_few_words_and_little_time(shared_daemon: Daemon) -> None:
    async with shared_daemon.client() as client:
        with pytest.raises(CallFailed) as caught:
            await client.spawn(SpawnRequest(program="/" + "a" * 120_000))
        assert len(str(caught.value)) < 2000
        with pytest.raises(CallFailed) as caught:
            await client.status("x" * 120_000)
        assert len(str(caught.value)) < 2000
