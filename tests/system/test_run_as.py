"""Jobs of other system accounts, through a whole daemon: who may have them, and what they are kept from."""

import asyncio
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest, Stream

from tests.daemon import USER, Daemon, running_daemon
from tests.system.test_exhaustion import daemon_of, idle_account
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.events import Output
from workerctl.target import Target

NOBODY = "nobody"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take on another account")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon whose state directory nothing but its own permissions hides, with an administrator."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        with running_daemon(Path(directory, "state"), "--roles.admin", "operator") as daemon:
            daemon.pki.issue_client("operator")
            yield daemon


def wish(script: str, run_as: str = NOBODY) -> SpawnRequest:
    return SpawnRequest(program="sh", args=["-c", script], working_directory="/", run_as=run_as)


async def output(client: Client, job_id: str) -> bytes:
    """Read what a job prints to its standard output, up to its end."""
    events = client.stream_log(job_id, streams=[Stream.STDOUT])
    return b"".join([event.data async for event in events if isinstance(event, Output)])


async def test_who_may_runs_a_job_as_another_account_and_it_is_shown(daemon: Daemon) -> None:
    command = ("--run-as", NOBODY, "--working-directory", "/", "--", "sh", "-c", "id -un; exit 3")
    ran = await asyncio.to_thread(daemon.workerctl, "run", *command, user="operator")
    assert (ran.stdout, ran.stderr, ran.returncode) == (f"{NOBODY}\n".encode(), b"", 3)
    async with daemon.client("operator") as client:
        job = await anext(client.list_jobs())
    assert (job.run_as, job.spawned_by) == (NOBODY, None)
    described = await asyncio.to_thread(daemon.workerctl, "status", job.id, user="operator")
    assert f"runs as:    {NOBODY}\n".encode() in described.stdout


async def test_who_may_not_is_told_the_same_of_every_account(daemon: Daemon) -> None:
    async with daemon.client() as client:
        sentences = []
        for account in (NOBODY, "bin", "no-such-account"):
            with pytest.raises(CallFailed) as denial:
                await client.spawn(wish("true", account))
            assert denial.value.status is Status.PERMISSION_DENIED
            assert denial.value.reason is ErrorReason.NOT_PERMITTED
            sentences.append(str(denial.value).replace(account, "ACCOUNT"))
        assert len(set(sentences)) == 1
        assert "run-as" in sentences[0]


async def test_an_account_that_there_is_not_is_told_to_who_may(daemon: Daemon) -> None:
    async with daemon.client("operator") as client:
        with pytest.raises(CallFailed, match="no such account") as failure:
            await client.spawn(wish("true", "no-such-account"))
    assert failure.value.status is Status.FAILED_PRECONDITION
    assert failure.value.reason is ErrorReason.ACCOUNT_UNUSABLE


async def test_a_job_that_somebody_had_started_for_its_owner_says_so(daemon: Daemon) -> None:
    async with daemon.client() as owner:
        await owner.whoami()
    acting = Client(Target(daemon.endpoint, USER, daemon.pki.path, certificate="operator"))
    async with acting as client, daemon.client() as owner:
        job_id = await client.spawn(SpawnRequest(program="true"))
        job = await owner.status(job_id)
        own = await owner.status(await owner.spawn(SpawnRequest(program="true")))
    assert job.owner is not None
    assert job.spawned_by is not None
    assert (job.owner.name, job.spawned_by.name) == (USER, "operator")
    assert own.spawned_by is None


async def test_such_a_job_reads_nothing_of_the_daemons(daemon: Daemon) -> None:
    """Neither certificates and their keys, nor what other jobs were asked for and printed, nor itself."""
    daemon.state.chmod(0o755)  # as one that an administrator made
    (daemon.state / "pki").chmod(0o755)
    async with daemon.client("operator") as client:
        other = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo mine; exec sleep 1000"]))
        pid = (await client.status(other)).pid
        files = [path for path in daemon.state.rglob("*") if path.is_file() and path.stat().st_size]
        public = {"endpoint", "stderr"}  # the address, and what the test itself keeps there
        secret = [path for path in files if path.suffix not in {".crt", ".crl"} and path.name not in public]
        assert len(secret) > 10
        cats = "; ".join(f"cat {path}" for path in secret)
        peeks = f"cat /proc/{pid}/environ; ls /proc/{pid}/fd; cat /proc/{daemon.pid}/environ; ls {daemon.state}/jobs"
        job_id = await client.spawn(wish(f"({cats}; {peeks}; kill {pid}) || echo done"))
        assert await output(client, job_id) == b"done\n"


async def test_such_a_job_outlives_its_daemon_and_can_be_stopped_by_the_next(daemon: Daemon) -> None:
    async with daemon.client("operator") as client:
        job_id = await client.spawn(wish("echo before; exec sleep 1000"))
    daemon.stop()
    daemon.start()
    async with daemon.client("operator") as client:
        await client.stop(job_id)
        events = [event async for event in client.stream_log(job_id)]
        job = await client.status(job_id)
    assert isinstance(events[0], Output)
    assert events[0].data == b"before\n"
    assert job.end is not None
    assert job.end.stopped is not None
    assert job.end.stopped.signal == 15


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_jobs_run_as_the_account_that_is_set_unless_who_may_says_otherwise(
    tmp_path: Path, processes: str
) -> None:
    options = ("--run-as", NOBODY, "--roles.admin", "operator", "--processes", processes)
    with running_daemon(tmp_path / "state", *options) as daemon:
        daemon.pki.issue_client("operator")
        async with daemon.client() as client, daemon.client("operator") as operator:
            job_id = await client.spawn(wish("id -un", ""))
            assert await output(client, job_id) == f"{NOBODY}\n".encode()
            assert (await client.status(job_id)).run_as == NOBODY
            with pytest.raises(CallFailed, match="run-as root"):
                await client.spawn(wish("id -un", "root"))
            assert await output(operator, await operator.spawn(wish("id -un", "root"))) == b"root\n"


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("options", "is_told"), [((), True), (("--run-as", "root"), False)])
def test_a_daemon_whose_jobs_are_roots_says_so_at_its_start_unless_that_is_meant(
    tmp_path: Path, options: tuple[str, ...], is_told: bool, processes: str
) -> None:
    with running_daemon(tmp_path / "state", *options, "--processes", processes) as daemon:
        assert daemon.errors().count("jobs run as root") == is_told


@pytest.mark.skipif(os.path.isdir(pwd.getpwnam(NOBODY).pw_dir), reason="the account has a home here")
def test_an_account_without_a_home_is_told_at_the_start_and_what_to_do_to_who_spawns(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state", "--run-as", NOBODY) as daemon:
        assert daemon.errors().count("the account that jobs run as has no home directory") == 1
        failed = daemon.workerctl("run", "--", "true")
        assert failed.returncode == 125
        assert b"it is the home of the account; name another folder with --working-directory" in failed.stderr
        assert daemon.workerctl("run", "--working-directory", "/", "--", "true").returncode == 0


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv(1)")
async def test_a_daemon_that_is_not_root_runs_jobs_as_itself_alone() -> None:
    account = idle_account()
    with daemon_of(account, options=("--roles.admin", USER)) as daemon:
        async with daemon.client() as client:
            with pytest.raises(CallFailed, match=f"the daemon runs as {account.pw_name}, and only root") as failure:
                await client.spawn(wish("true", next(each.pw_name for each in pwd.getpwall() if each != account)))
            assert failure.value.reason is ErrorReason.ACCOUNT_UNUSABLE
            assert await output(client, await client.spawn(wish("id -un", account.pw_name))) == (
                f"{account.pw_name}\n".encode()
            )
