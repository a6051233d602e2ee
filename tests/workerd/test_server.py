"""How serving ends."""

import asyncio
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from pki.store import PkiFolder
from tests.daemon import USER, end_jobs
from workerctl.client import Client
from workerctl.errors import Unavailable
from workerctl.retry import Patience
from workerctl.target import Target
from workerd.engine.engine import Engine
from workerd.registry import load_routes
from workerd.server import answering, listen
from workerd.settings import Settings


@pytest.fixture
def descriptor_limit() -> Iterator[None]:
    """Give this process back its limit on descriptors, which a daemon raises for its own."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.usefixtures("descriptor_limit")
async def test_a_fault_of_the_daemon_s_ends_its_calls_with_unavailable_too(tmp_path: Path) -> None:
    settings = Settings("127.0.0.1", 0, tmp_path, tmp_path / "pki")
    PkiFolder(settings.pki_directory).initialize(users=[USER])

    async def follow(client: Client, job_id: str) -> None:
        async for _ in client.stream_log(job_id):
            following.set()

    following = asyncio.Event()
    followers: list[asyncio.Task[None]] = []
    with listen(settings) as listening:
        target = Target(f"https://localhost:{listening.getsockname()[1]}", USER, settings.pki_directory)
        async with Engine(tmp_path) as engine, Client(target, patience=Patience(retry_seconds=0)) as client:

            async def serve() -> None:
                async with answering(engine, settings, load_routes(), listening):
                    job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
                    followers.append(asyncio.create_task(follow(client, job_id)))
                    await following.wait()
                    raise OSError("no room")

            with pytest.raises(OSError, match="no room"):
                await serve()
            with pytest.raises(Unavailable):
                await asyncio.wait_for(followers[0], 10)
    end_jobs(tmp_path)
