"""Ten thousand jobs that have ended do not delay the first answer, whether the catalogue knows them or not."""

import itertools
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import Daemon, multiply, running_daemon
from tests.waiting import wait_unlocked

COUNT = 10_000
START_SECONDS = 2.0
ANSWER_SECONDS = 1.0
ROOM_BYTES = COUNT * 100_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A folder for many small files: in memory if there is room, since making them is no part of the test."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            yield Path(folder, "state")
    else:
        yield tmp_path / "state"


def start(daemon: Daemon) -> float:
    """Start a daemon, and tell how many seconds it took until it said that it serves."""
    begun = time.monotonic()
    daemon.start()
    return time.monotonic() - begun


async def look(daemon: Daemon, job_id: str) -> tuple[float, float, float]:
    """Make the first calls, and tell how many seconds each took: whoami, status, and a whole list."""
    async with daemon.client() as client:
        times = [time.monotonic()]
        await client.whoami()
        times.append(time.monotonic())
        assert (await client.status(job_id)).end is not None
        times.append(time.monotonic())
        listed = [job async for job in client.list_jobs()]
        times.append(time.monotonic())
    assert len({job.id for job in listed}) == len(listed) == COUNT + 1
    created = [job.created_at for job in listed if job.created_at is not None]
    assert created == sorted(created, reverse=True)
    whoami, status, list_ = (after - before for before, after in itertools.pairwise(times))
    return whoami, status, list_


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_ended_jobs_do_not_delay_the_first_answer(state: Path) -> None:
    with running_daemon(state) as daemon:
        async with daemon.client() as client:
            job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo out; echo err >&2"]))
            async for _ in client.stream_log(job_id):
                pass
        wait_unlocked(daemon.folder(job_id))
        daemon.stop()
        empty = start(daemon)  # for comparison: Python's own start is in it
        daemon.stop()
        multiply(daemon.folder(job_id), COUNT)
        for catalogue in ("no catalogue", "a catalogue"):
            if catalogue == "no catalogue":
                for path in daemon.state.glob("catalog.*"):
                    path.unlink()
            seconds = start(daemon)
            whoami, status, list_ = await look(daemon, job_id)
            print(
                f"{COUNT} ended jobs, {catalogue}: served after {seconds:.2f} s (with one job {empty:.2f}),"
                f" whoami {whoami * 1e3:.0f} ms, status {status * 1e3:.0f} ms, whole list {list_:.1f} s"
            )
            assert seconds < empty + START_SECONDS
            assert max(whoami, status) < ANSWER_SECONDS
            daemon.stop()
        assert "Traceback" not in daemon.errors()
