"""Decisions about calls, as the audit trail has them: all of them, and nothing is done without."""

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest, SpawnResponse, WorkerServiceStub

from tests.daemon import USER, Daemon, daemon_in_this_process, running_daemon
from workerctl.client import Client
from workerctl.errors import CallFailed, ClientError
from workerctl.transport import WorkerChannel
from workerd.errors import AuditFailed

OTHER = "other"


def decisions(daemon: Daemon, action: str) -> list[dict[str, Any]]:
    """What the trail has of decisions on a right."""
    return [line for line in shown(daemon) if line["event"] == "decision" and line["action"] == action]


def shown(daemon: Daemon) -> list[dict[str, Any]]:
    """What `audit show` has."""
    result = daemon.workerctl("audit", "show", str(daemon.state), "--output", "json")
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_permits_and_denials_are_in_the_trail_with_who_what_and_why(any_daemon: Daemon) -> None:
    any_daemon.pki.issue_client(OTHER)
    job_id = any_daemon.workerctl("spawn", "--envs", "TOKEN=hunter2", "--", "true").stdout.decode().strip()
    assert any_daemon.workerctl("stop", job_id, user=OTHER).returncode == 123
    assert any_daemon.workerctl("stop", job_id).returncode == 0
    denied, permitted = decisions(any_daemon, "stop")
    for line, name, verdict, policies in (
        (denied, OTHER, "deny", []),
        (permitted, USER, "permit", ["default.cedar:owner"]),
    ):
        assert (line["user"]["name"], line["verdict"], line["policies"]) == (name, verdict, policies)
        assert (line["job_id"], line["rpc"]) == (job_id, "/worker.v1.WorkerService/Stop")
        assert line["from"].startswith("127.0.0.1:") and line["serial"]
    shown = any_daemon.workerctl("audit", "show", "--job", job_id, "--event", "job-spawned", str(any_daemon.state))
    assert b" job_id=" in shown.stdout and b" program=true args=[]\n" in shown.stdout
    [spawned] = decisions(any_daemon, "spawn")
    assert spawned["request"]["envs"] == ["TOKEN"] and "hunter2" not in json.dumps(spawned)
    assert any_daemon.workerctl("audit", "verify", str(any_daemon.state)).returncode == 0


def test_a_certificate_that_is_not_good_for_what_is_to_be_passed_on_is_denied_in_the_trail(
    daemon: Daemon, tmp_path: Path
) -> None:
    out = tmp_path / "narrowed"
    command = ("credential", "issue", "--allow", "issue-credential,status", "--out", str(out))
    assert daemon.workerctl(*command).returncode == 0
    narrowed = [each.replace(str(daemon.pki.path), str(out)) for each in daemon.command("credential", "issue")]
    asked = [*narrowed, "--allow", "stop", "--out", str(tmp_path / "further")]
    assert subprocess.run(asked, capture_output=True, check=False, timeout=60).returncode == 125
    [denied] = decisions(daemon, "stop")
    assert (denied["verdict"], denied["policies"]) == ("deny", ["certificate"])
    assert denied["rpc"] == "/worker.v1.WorkerService/IssueCredential"
    assert "request" not in denied


def test_what_was_permitted_and_failed_is_in_the_trail_without_values(daemon: Daemon) -> None:
    spawned = daemon.workerctl("spawn", "--working-directory", "/nowhere-secret", "--", "true")
    assert spawned.returncode == 125
    job_id = daemon.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
    assert daemon.workerctl("remove", job_id).returncode == 125
    assert daemon.workerctl("stream-log", job_id, "--offset", "1000000", "--no-follow").returncode == 2  # only looks
    assert daemon.workerctl("stop", job_id).returncode == 0
    failed = [line for line in shown(daemon) if line["event"] == "failed"]
    told = [(line["action"], line["status"], line["reason"], line.get("job_id")) for line in failed]
    assert told == [
        ("spawn", "FAILED_PRECONDITION", "WORKING_DIRECTORY_UNUSABLE", None),
        ("remove", "FAILED_PRECONDITION", "JOB_NOT_ENDED", job_id),
    ]
    assert all(line["user"]["name"] == USER and "nowhere" not in json.dumps(line) for line in failed)


async def test_a_job_is_in_the_trail_though_nobody_waited_for_it_to_start(daemon: Daemon) -> None:
    async with daemon.client() as client:
        await client.whoami()
        jobs: set[str] = set()
        number = 0  # a client that leaves too early has no job: it waits longer each time
        async with asyncio.timeout(90):
            while number < 20 or not jobs:
                number += 1
                with contextlib.suppress(ClientError):
                    request = SpawnRequest(program="true", request_key=str(number))
                    await client.call(partial(spawn_in_time, request, 0.001 + number / 2000))
                jobs = {job.id async for job in client.list_jobs()}
    daemon.stop()
    started = {line["job_id"] for line in shown(daemon) if line["event"] == "job-spawned"}
    assert started == jobs


async def spawn_in_time(request: SpawnRequest, seconds: float, channel: WorkerChannel) -> SpawnResponse:
    """Start a job, and wait for it no longer than so long."""
    return await WorkerServiceStub(channel).spawn(request, timeout=seconds)


async def test_a_limit_that_is_met_is_in_the_trail_once_in_a_while(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state", "--max-streams-per-user", "1") as daemon:
        async with daemon.client() as client:
            job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
            async with contextlib.aclosing(client.stream_log(job_id)) as log:
                await anext(log)
                failures = []
                for _ in range(3):
                    with pytest.raises(CallFailed) as raised:
                        await anext(client.stream_log(job_id))
                    failures.append(raised.value)
        assert {each.reason for each in failures} == {ErrorReason.LIMIT_REACHED}
        [refused] = [line for line in shown(daemon) if line["event"] == "refused"]
        assert (refused["user"]["name"], refused["reason"]) == (USER, str(failures[0]))
        said = re.sub(r"\x1b\[[0-9;]*m", "", daemon.errors())
        assert said.count("calls are turned away") == 1 and f"user={USER}" in said


async def test_nothing_is_done_that_cannot_be_written_down(tmp_path: Path) -> None:
    def record(event: Mapping[str, Any], *, urgent: bool = False) -> None:  # noqa: ARG001
        if event.get("action") == "spawn":
            raise AuditFailed("No space left on device")

    async with daemon_in_this_process(tmp_path, record) as target, Client(target) as client:
        with pytest.raises(CallFailed) as raised:
            await client.spawn(SpawnRequest(program="touch", args=[str(tmp_path / "done")]))
        assert (raised.value.status, raised.value.reason) == (Status.RESOURCE_EXHAUSTED, ErrorReason.AUDIT_FAILED)
        assert [job async for job in client.list_jobs()] == []
    assert not (tmp_path / "done").exists()
