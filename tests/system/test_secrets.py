"""What is in a job's environment is for its owner's eyes: it shows up nowhere else, whatever happens."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import Daemon, running_daemon
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerd.engine.tree import descendants, parent_of


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "several processes"])
def daemon(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon of each kind, with an administrator and somebody who may only look."""
    options = ("--processes", request.param, "--roles.admin", "root", "--roles.viewer", "eve")
    with running_daemon(tmp_path_factory.mktemp("daemon") / "state", *options) as daemon:
        for name in ("root", "eve", "friend"):
            daemon.pki.issue_client(name)
        yield daemon


async def spawn(client: Client, secret: str) -> str:
    """Start a job that has a secret and runs on; return its id."""
    envs = {"TOKEN": secret, "OTHER": "x"}
    return await client.spawn(SpawnRequest(program="sleep", args=["1000"], working_directory="/", envs=envs))


async def test_the_owner_is_shown_the_variables_that_were_asked_for(daemon: Daemon) -> None:
    async with daemon.client() as client:
        job_id = await spawn(client, "a\nb")
    shown = await asyncio.to_thread(daemon.workerctl, "status", job_id, "--show-envs")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.endswith(b"\nvariable:   OTHER=x\nvariable:   TOKEN=a\\nb\n")
    plain = await asyncio.to_thread(daemon.workerctl, "status", job_id, "--show-envs", "--output", "json")
    assert json.loads(plain.stdout)["envs"] == {"TOKEN": "a\nb", "OTHER": "x"}
    for unasked in (("status", job_id), ("list",), ("stop", job_id)):
        shown = await asyncio.to_thread(daemon.workerctl, *unasked, "--output", "json")
        assert "envs" not in json.loads(shown.stdout)


async def test_nobody_else_is_shown_them(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    async with daemon.client() as owner, daemon.client("friend") as friend:
        await friend.whoami()
        job_id = await spawn(owner, secret)
        await owner.share(job_id, "friend", ["status", "show-envs"])
    for user in ("root", "eve", "friend"):
        async with daemon.client(user) as client:
            job = await client.status(job_id)
            assert (job.id, job.envs) == (job_id, {})
            with pytest.raises(CallFailed, match="no right to show-envs") as denial:
                await client.status(job_id, show_envs=True)
            assert denial.value.reason is ErrorReason.NOT_PERMITTED
            assert secret not in repr(job) + repr(denial.value)


async def test_a_secret_is_in_no_other_answer_and_no_process_but_the_jobs(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    async with daemon.client() as client:
        job_id = await spawn(client, secret)
        job = await client.status(job_id)
        supervisor = parent_of(job.pid)
        assert supervisor
        with Path(f"/proc/{job.pid}/environ").open() as environment:
            assert secret in environment.read()
        ours = {daemon.pid, supervisor, *(below for below, _ in descendants(daemon.pid))} - {job.pid}
        names = {Path(f"/proc/{process}/comm").read_text().strip() for process in ours}
        assert {"workerd-zygote", "workerd-job"} <= names
        assert "--processes 1" in " ".join(daemon.options) or "workerd-api" in names
        for process in ours:
            for name in ("cmdline", "environ"):
                assert secret.encode() not in Path(f"/proc/{process}/{name}").read_bytes(), name
        answers: list[object] = [job, await client.whoami(), [each async for each in client.list_jobs()]]
        answers += [await client.share(job_id), await client.explain("show-envs", job_id=job_id)]
        with pytest.raises(CallFailed) as failure:
            await client.remove(job_id)
        answers += [failure.value, await client.stop(job_id, timedelta(0))]
        answers += [event async for event in client.stream_log(job_id)]
    assert job_id in repr(answers)
    assert secret not in repr(answers)
    assert secret not in daemon.errors()


async def test_on_the_disk_a_secret_is_in_the_journal_alone(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    async with daemon.client() as client:
        job_id = await spawn(client, secret)
        assert (await client.status(job_id, show_envs=True)).envs["TOKEN"] == secret
    files = [path for path in daemon.state.rglob("*") if path.is_file()]
    assert [path for path in files if secret.encode() in path.read_bytes()] == [daemon.folder(job_id).journal]
    assert daemon.folder(job_id).journal.stat().st_mode & 0o777 == 0o600


async def test_a_spawn_that_fails_tells_no_secret(daemon: Daemon) -> None:
    secret = uuid.uuid4().hex
    envs = {"TOKEN": secret}
    here = SpawnRequest(program="true", working_directory="/", envs=envs)
    wishes = [
        SpawnRequest(program="no-such-program", envs=envs),
        SpawnRequest(program="/etc/passwd", envs=envs),
        SpawnRequest(program="true", working_directory="/no/such", envs=envs),
        SpawnRequest(program="true", args=["x" * 200_000], envs=envs),
        replace(here, envs={**envs, "A": f"\0{secret}"}),
        replace(here, envs={"A=B": secret}),
        replace(here, envs={"": secret}),
        replace(here, envs={"TOKEN": secret * 10_000}),
        replace(here, run_as="no-such-account"),
        replace(here, name="x" * 300),
    ]
    async with daemon.client("root") as client:
        for wish in wishes:
            with pytest.raises(CallFailed) as failure:
                await client.spawn(wish)
            assert failure.value.reason is not ErrorReason.INTERNAL, wish.program
            assert secret not in repr(failure.value) + repr(failure.value.__cause__)
        (daemon.state / "drafts").rename(daemon.state / "away")  # a fault of the daemon's, with a traceback
        with pytest.raises(CallFailed) as failure:
            await client.spawn(here)
        (daemon.state / "away").rename(daemon.state / "drafts")
        assert failure.value.reason is ErrorReason.INTERNAL
        assert secret not in repr(failure.value) + repr(failure.value.__cause__)
    assert "Traceback" in daemon.errors()
    assert secret not in daemon.errors()
    assert not [path for path in daemon.state.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
