"""How serving ends."""

import asyncio
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import daemon_in_this_process
from workerctl.client import Client
from workerctl.errors import Unavailable
from workerctl.retry import Patience


async def test_a_fault_of_the_daemon_s_ends_its_calls_with_unavailable_too(tmp_path: Path) -> None:
    following = asyncio.Event()
    followers: list[asyncio.Task[None]] = []

    async def follow(client: Client) -> None:
        async with client:
            job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
            async for _ in client.stream_log(job_id):
                following.set()

    async def serve() -> None:
        async with daemon_in_this_process(tmp_path) as target:
            followers.append(asyncio.create_task(follow(Client(target, patience=Patience(retry_seconds=0)))))
            await following.wait()
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        await serve()
    with pytest.raises(Unavailable):
        await asyncio.wait_for(followers[0], 10)
