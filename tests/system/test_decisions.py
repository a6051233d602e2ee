"""Decisions about calls, as the audit trail has them: all of them, and nothing is done without."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import USER, Daemon, daemon_in_this_process
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerd.errors import AuditFailed

OTHER = "other"


def decisions(daemon: Daemon, action: str) -> list[dict[str, Any]]:
    """What the trail has of decisions on a right."""
    result = daemon.workerctl("audit", "show", str(daemon.state), "--output", "json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in lines if line["event"] == "decision" and line["action"] == action]


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


async def test_nothing_is_done_that_cannot_be_written_down(tmp_path: Path) -> None:
    def record(event: Mapping[str, Any]) -> None:
        if event.get("action") == "spawn":
            raise AuditFailed("No space left on device")

    async with daemon_in_this_process(tmp_path, record) as target, Client(target) as client:
        with pytest.raises(CallFailed) as raised:
            await client.spawn(SpawnRequest(program="touch", args=[str(tmp_path / "done")]))
        assert (raised.value.status, raised.value.reason) == (Status.RESOURCE_EXHAUSTED, ErrorReason.AUDIT_FAILED)
        assert [job async for job in client.list_jobs()] == []
    assert not (tmp_path / "done").exists()
