"""The default of how much all jobs together may take of the disk."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import Daemon, running_daemon
from tests.small_disk import small_disk
from tests.waiting import wait_until
from workerctl.client import Client
from workerd.engine.storage import default_total_bytes, disk_bytes

DISK_BYTES = 128 << 20
PRINTED_BYTES = 16 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small, empty disk of the test's own."""
    with small_disk(tmp_path / "disk", DISK_BYTES, 0):
        yield tmp_path / "disk"


async def print_much(client: Client) -> str:
    """Run a job that prints an eighth of the disk, to its end."""
    job_id = await client.spawn(SpawnRequest(program="head", args=["-c", str(PRINTED_BYTES), "/dev/zero"]))
    async for _ in client.stream_log(job_id, streams=[]):
        pass
    return job_id


def kept(daemon: Daemon) -> int:
    """Return what all jobs take of the disk."""
    total = 0
    for path in (daemon.state / "jobs").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is removed just now
            total += disk_bytes(path)
    return total


async def test_by_default_the_oldest_results_go_before_the_disk_is_full(disk: Path) -> None:
    limit = DISK_BYTES * 80 // 100
    with running_daemon(disk / "state") as daemon:
        async with daemon.client() as client:
            running = await client.spawn(SpawnRequest(program="sleep", args=["1000"]))
            ids = [await print_much(client) for _ in range(6)]
            assert kept(daemon) < limit
            assert [job.id async for job in client.list_jobs()] == [*ids[::-1], running]
            for _ in range(6):
                ids.append(await print_much(client))
                wait_until(lambda: kept(daemon) < limit, "more than the limit is kept")
            left = [job.id async for job in client.list_jobs()]
        shown = daemon.workerctl("audit", "show", str(daemon.state), "--output", "json").stdout
    assert left == [*ids[-6:][::-1], running]
    lines = map(json.loads, shown.splitlines())
    assert [line["job_id"] for line in lines if line["event"] == "job-expired"] == ids[:6]


async def test_with_a_total_of_zero_nothing_is_removed(disk: Path) -> None:
    with running_daemon(disk / "state", "--max-total-bytes", "0") as daemon:
        async with daemon.client() as client:
            ids = [await print_much(client) for _ in range(7)]
            assert kept(daemon) > DISK_BYTES * 80 // 100
            assert [job.id async for job in client.list_jobs()] == ids[::-1]


def test_the_default_is_a_share_of_the_size_of_the_file_system_that_the_state_directory_will_be_on(disk: Path) -> None:
    found = os.statvfs(disk)
    assert default_total_bytes(disk / "not" / "there" / "yet") == found.f_blocks * found.f_frsize * 4 // 5
    assert default_total_bytes(Path("/proc")) == 0  # it has no size: any amount
