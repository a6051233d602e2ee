"""What is in a job's environment is for its owner's eyes: it shows up nowhere else, whatever happens."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import Daemon, running_daemon
from workerctl.errors import CallFailed
from workerctl.exit_codes import ExitCode
from workerd.engine.tree import descendants, parent_of


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "several processes"])
def daemon(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon of each kind, with an administrator and somebody who may only look."""
    options = ("--processes", request.param, "--roles.admin", "root", "--roles.viewer", "eve")
    with running_daemon(tmp_path_factory.mktemp("daemon") / "state", *options) as daemon:
        for name in ("root", "eve", "friend"):
            daemon.pki.issue_client(name)
        yield daemon


def spawn(daemon: Daemon, secret: str, *options: str) -> str:
    """Start a job that has a secret and runs on; return its id."""
    started = daemon.workerctl("spawn", "--envs", f"TOKEN={secret},OTHER=x", *options, "--", "sleep", "1000")
    assert started.returncode == 0, started.stderr
    return started.stdout.decode().strip()


def test_the_owner_is_shown_the_variables_that_were_asked_for(daemon: Daemon) -> None:
    job_id = spawn(daemon, "a\nb")
    shown = daemon.workerctl("status", job_id, "--show-envs")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.endswith(b"\nvariable:   OTHER=x\nvariable:   TOKEN=a\\nb\n")
    plain = daemon.workerctl("status", job_id, "--show-envs", "--output", "json")
    assert json.loads(plain.stdout)["envs"] == {"TOKEN": "a\nb", "OTHER": "x"}


def test_nobody_else_is_shown_them(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    job_id = spawn(daemon, secret)
    daemon.workerctl("whoami", user="friend")
    shared = daemon.workerctl("share", job_id, "--with", "friend", "--allow", "status,show-envs")
    assert shared.returncode == 0, shared.stderr
    for user in ("root", "eve", "friend"):
        seen = daemon.workerctl("status", job_id, user=user)
        assert (seen.returncode, job_id.encode() in seen.stdout) == (0, True), (user, seen.stderr)
        denied = daemon.workerctl("status", job_id, "--show-envs", user=user)
        assert (denied.returncode, denied.stdout) == (ExitCode.FAILED, b"")
        assert b"no right to show-envs" in denied.stderr
        assert secret.encode() not in seen.stdout + seen.stderr + denied.stderr


def test_a_secret_is_in_no_other_answer_and_no_process_but_the_jobs(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    job_id = spawn(daemon, secret)
    pid = json.loads(daemon.workerctl("status", job_id, "--output", "json").stdout)["pid"]
    assert secret in Path(f"/proc/{pid}/environ").read_text()
    supervisor = parent_of(pid)
    assert supervisor
    ours = {daemon.pid, supervisor, *(below for below, _ in descendants(daemon.pid))} - {pid}
    names = {Path(f"/proc/{process}/comm").read_text().strip() for process in ours}
    assert {"workerd-zygote", "workerd-job"} <= names
    for process in ours:
        for name in ("cmdline", "environ"):
            assert secret.encode() not in Path(f"/proc/{process}/{name}").read_bytes(), name
    said = [
        daemon.workerctl(*arguments)
        for arguments in (
            ("list",),
            ("list", "--output", "json"),
            ("status", job_id),
            ("status", job_id, "--output", "json"),
            ("whoami", "--output", "json"),
            ("remove", job_id),
            ("stop", job_id, "--grace-seconds", "0", "--output", "json"),
            ("stream-log", job_id, "--stream-type", "raw", "--past-events"),
            ("remove", job_id),
        )
    ]
    assert b'"state": ' in said[3].stdout
    for each in said:
        assert secret.encode() not in each.stdout + each.stderr
    assert secret not in daemon.errors()


def test_on_the_disk_a_secret_is_in_the_spec_alone(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    job_id = spawn(daemon, secret)
    daemon.workerctl("status", job_id, "--show-envs")
    files = [path for path in daemon.state.rglob("*") if path.is_file()]
    assert [path for path in files if secret.encode() in path.read_bytes()] == [daemon.folder(job_id).spec]
    assert daemon.folder(job_id).spec.stat().st_mode & 0o777 == 0o600


async def test_a_spawn_that_fails_tells_no_secret(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    envs = {"TOKEN": secret}
    program: Any = {"program": "true", "working_directory": "/"}
    wishes = [
        SpawnRequest(program="no-such-program", envs=envs),
        SpawnRequest(program="/etc/passwd", envs=envs),
        SpawnRequest(program="true", working_directory="/no/such", envs=envs),
        SpawnRequest(program="true", args=["x" * 200_000], envs=envs),
        SpawnRequest(**program, envs={**envs, "A": f"\0{secret}"}),
        SpawnRequest(**program, envs={"A=B": secret}),
        SpawnRequest(**program, envs={"": secret}),
        SpawnRequest(**program, envs={"TOKEN": secret * 10_000}),
        SpawnRequest(**program, envs=envs, run_as="no-such-account"),
        SpawnRequest(**program, envs=envs, name="x" * 300),
    ]
    async with daemon.client("root") as client:
        for wish in wishes:
            with pytest.raises(CallFailed) as failure:
                await client.spawn(wish)
            assert failure.value.reason is not ErrorReason.INTERNAL, wish.program
            assert secret not in repr(failure.value) + repr(failure.value.__cause__)
        (daemon.state / "drafts").rename(daemon.state / "away")  # a fault of the daemon's, with a traceback
        with pytest.raises(CallFailed) as failure:
            await client.spawn(SpawnRequest(**program, envs=envs))
        (daemon.state / "away").rename(daemon.state / "drafts")
        assert failure.value.reason is ErrorReason.INTERNAL
        assert secret not in repr(failure.value) + repr(failure.value.__cause__)
    assert "Traceback" in daemon.errors()
    assert secret not in daemon.errors()
    assert not [path for path in daemon.state.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
