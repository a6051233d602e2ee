"""The audit trail of a real daemon: whole whatever happens to the daemon, with the end of every job, and no secrets."""

import asyncio
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker_api.worker.v1 import JobEnd, SpawnRequest

from audit.verification import verify
from tests.daemon import USER, Daemon, running_daemon
from tests.waiting import wait_until
from workerctl.client import Client
from workerctl.exit_codes import ExitCode


def events(daemon: Daemon, *options: str) -> list[dict[str, Any]]:
    """What `workerctl audit show` shows of the daemon's trail."""
    result = daemon.workerctl("audit", "show", str(daemon.state), "--output", "json", *options)
    assert (result.returncode, result.stderr) == (0, b"")
    return [json.loads(line) for line in result.stdout.splitlines()]


def ends(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """How each job ended; each is told once."""
    found = [event for event in events(daemon) if event["event"] == "job-ended"]
    told = {event["job_id"]: event for event in found}
    assert len(told) == len(found)
    return told


def run(daemon: Daemon, *command: str) -> str:
    """Run a job to its end, and return its id."""
    job_id = daemon.workerctl("spawn", "--", *command).stdout.decode().strip()
    assert daemon.workerctl("stream-log", "--past-events", "--uuid", job_id).returncode == 0
    return job_id


def check_whole(daemon: Daemon) -> None:
    result = daemon.workerctl("audit", "verify", str(daemon.state))
    assert result.returncode == 0, result.stdout


def test_the_end_of_a_job_is_in_the_trail_with_all_that_it_amounted_to(any_daemon: Daemon) -> None:
    job_id = run(any_daemon, "sh", "-c", "printf hello; exit 3")
    wait_until(lambda: job_id in ends(any_daemon), "the end of a job is not in the trail")
    told = ends(any_daemon)[job_id]
    assert told["owner"]["name"] == USER
    assert told["end"]["exited"] == {"code": 3}
    assert told["end"]["started_at"] < told["end"]["ended_at"]
    [status] = [json.loads(any_daemon.workerctl("status", "--output", "json", "--uuid", job_id).stdout)]
    assert told["end"]["streams"] == status["end"]["streams"]
    check_whole(any_daemon)


def test_a_job_that_is_removed_at_once_has_its_end_in_the_trail(any_daemon: Daemon) -> None:
    ids = []
    for _ in range(3):
        ids.append(run(any_daemon, "true"))
        assert any_daemon.workerctl("remove", ids[-1]).returncode == 0
    assert ids == [*ends(any_daemon)]
    check_whole(any_daemon)


def test_what_ends_while_no_daemon_runs_is_in_the_trail_afterwards(any_daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = any_daemon.workerctl("spawn", "--", "sh", "-c", f"read line <{gate}").stdout.decode().strip()
    any_daemon.stop(signal.SIGKILL)
    gate.write_text("go\n")
    any_daemon.start()
    wait_until(lambda: job_id in ends(any_daemon), "the end of a job is not in the trail")
    any_daemon.stop()
    (any_daemon.state / "catalog.sqlite").unlink()
    any_daemon.start()
    run(any_daemon, "true")
    assert any_daemon.workerctl("list").returncode == 0  # which waits until every folder has been looked at
    assert job_id in ends(any_daemon)
    names = [event["event"] for event in events(any_daemon) if event["event"].startswith("daemon-")]
    assert names == ["daemon-started", "daemon-started", "daemon-stopped", "daemon-started"]
    check_whole(any_daemon)


async def test_no_environment_variable_reaches_the_trail(any_daemon: Daemon) -> None:
    async with any_daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="sleep", args=["1000"], envs={"TOKEN": "hunter2"}))
        await client.status(job_id)
        await client.stop(job_id)
        await follow(client, job_id)
    wait_until(lambda: job_id in ends(any_daemon), "the end of a job is not in the trail")
    assert ends(any_daemon)[job_id]["end"]["stopped"]["by"]["name"] == USER
    for path in (any_daemon.state / "audit").iterdir():
        assert b"hunter2" not in path.read_bytes()


async def follow(client: Client, job_id: str) -> None:
    async for _ in client.stream_log(job_id):
        pass


def test_jobs_that_are_removed_for_their_age_are_told_of(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state", "--max-age-seconds", "0.5") as daemon:
        job_id = daemon.workerctl("spawn", "--", "true").stdout.decode().strip()

        def expired() -> bool:
            return any(event["event"] == "job-expired" for event in events(daemon, "--job", job_id))

        wait_until(expired, "the removal of a job is not in the trail")
        names = [event["event"] for event in events(daemon, "--job", job_id)]
        assert [name for name in names if name in ("job-ended", "job-expired")] == ["job-ended", "job-expired"]


def test_a_trail_that_is_touched_while_a_daemon_runs_is_damaged_for_good(any_daemon: Daemon) -> None:
    run(any_daemon, "true")
    wait_until(lambda: ends(any_daemon), "the end of a job is not in the trail")
    [path] = (any_daemon.state / "audit").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"job-ended", b"job-added"))
    run(any_daemon, "true")
    any_daemon.stop()
    any_daemon.start()
    result = any_daemon.workerctl("audit", "verify", str(any_daemon.state))
    assert result.returncode == ExitCode.LOG_DAMAGED
    assert f"{path.name}, line ".encode() in result.stdout
    fault = verify(any_daemon.state / "audit").fault
    assert fault is not None and b"job-added" in path.read_bytes().splitlines()[fault.line - 1]


async def test_each_job_that_is_made_again_with_its_key_has_its_end_in_the_trail(daemon: Daemon) -> None:
    """Also when nobody looks any more whether the other one still runs."""
    count = 3
    async with daemon.client() as client:

        async def run_two(key: str) -> None:
            first = SpawnRequest(program="sleep", args=["0.3"], working_directory="/", request_key=key)
            job_id = await client.spawn(first)
            while (await client.status(job_id)).end is None:
                await asyncio.sleep(0.01)
            await client.remove(job_id)
            assert await client.spawn(replace(first, args=["3"])) == job_id
            assert isinstance([event async for event in client.stream_log(job_id)][-1], JobEnd)

        await asyncio.gather(*(run_two(str(number)) for number in range(count)))

    def told() -> list[dict[str, Any]]:
        return [event for event in events(daemon) if event["event"] == "job-ended"]

    await asyncio.to_thread(wait_until, lambda: len(told()) == 2 * count, "the end of a job is not in the trail")
