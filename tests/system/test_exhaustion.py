"""What the machine runs out of: calls are turned away with the reason, jobs run on, and all is well again afterwards.

Each test lowers a real limit of the kernel for a daemon of its own.
"""

import asyncio
import contextlib
import os
import pwd
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, JobEnd, JobState, SpawnRequest

from tests.daemon import Daemon, running_daemon
from tests.waiting import eventually
from workerctl.client import Client
from workerctl.errors import CallFailed, Refused, Unreachable
from workerctl.exit_codes import ExitCode
from workerctl.retry import Patience

SLEEP = SpawnRequest(program="sleep", args=["1000"], working_directory="/")
TRUE = SpawnRequest(program="true", working_directory="/")
WITHOUT_BOB = 'forbid (principal, action, resource) when { principal.name == "bob" };'
WATCHING_SECONDS = 3.0
CHECKED_SECONDS = 4.5  # then what could not be checked is ended


async def turned_away(call: Awaitable[object]) -> str:
    """Check that a call is turned away for want of something, and return the sentence."""
    with pytest.raises(CallFailed) as caught:
        await call
    assert (caught.value.status, caught.value.reason) == (Status.RESOURCE_EXHAUSTED, ErrorReason.RESOURCE_EXHAUSTED)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def spawn_until_turned_away(client: Client, at_most: int) -> tuple[list[str], str]:
    """Spawn jobs that sleep until one is turned away; return the others' ids and the sentence."""
    jobs: list[str] = []
    while len(jobs) < at_most:
        wish = asyncio.ensure_future(client.spawn(SLEEP))
        await asyncio.wait([wish])
        if wish.exception() is not None:
            return jobs, await turned_away(wish)
        jobs.append(wish.result())
    raise AssertionError(f"{at_most} jobs were started")


def spawn_by_command(daemon: Daemon) -> subprocess.CompletedProcess[bytes]:
    return daemon.workerctl("spawn", "--working-directory", "/", "--", "true")


def check_one_line(result: subprocess.CompletedProcess[bytes], what: bytes) -> None:
    """Check that workerctl failed and said why in one line."""
    assert result.returncode == ExitCode.FAILED
    assert result.stdout == b""
    assert result.stderr.count(b"\n") == 1
    assert re.search(what, result.stderr), result.stderr


def idle_account() -> pwd.struct_passwd:
    """Choose an account that no process runs under: what RLIMIT_NPROC counts is the account's (setrlimit(2))."""
    if os.geteuid() != 0:
        pytest.skip("to be bound by a limit on processes of its own the daemon needs another account: root only")
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv(1)")
    busy = {path.stat().st_uid for path in Path("/proc").glob("[0-9]*")}
    accounts = [account for account in pwd.getpwall() if account.pw_uid not in busy]
    if not accounts:
        pytest.skip("every account has processes")
    return accounts[-1]


def become(account: pwd.struct_passwd) -> tuple[str, ...]:
    """The command that runs a program as another account, for the program to be put behind it."""
    return (
        *("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"),
        # It may read everything: Python and this project may lie in root's home (capabilities(7)).
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    )


@contextlib.contextmanager
def daemon_of(account: pwd.struct_passwd, *prefix: str, options: tuple[str, ...] = ()) -> Iterator[Daemon]:
    """Run a daemon as another account."""
    reach = subprocess.run([*become(account), sys.executable, "-c", "import workerd"], capture_output=True, check=False)
    if reach.returncode != 0:
        pytest.skip(f"{account.pw_name} cannot run this project: {reach.stderr.decode()}")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as of_clients,
    ):
        daemon = Daemon(Path(folder, "state"), options, prefix=(*prefix, *become(account)))
        for path in (Path(folder), *Path(folder).rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
        daemon.certificates = shutil.copytree(daemon.pki.path, Path(of_clients, "pki"))
        daemon.start()
        try:
            yield daemon
        finally:
            daemon.close()


async def test_without_processes_spawns_are_turned_away_until_there_are_some_again() -> None:
    with daemon_of(idle_account(), "prlimit", "--nproc=30:30") as daemon:
        async with daemon.client() as client:
            jobs, sentence = await spawn_until_turned_away(client, 30)
            assert "no process" in sentence
            assert len(jobs) > 5
            result = await asyncio.to_thread(spawn_by_command, daemon)
            check_one_line(result, rb"cannot start .*no process.*try again")
            states = [(await client.status(job_id)).state for job_id in jobs]
            assert set(states) == {JobState.RUNNING}
            folders = {path.name for path in (daemon.state / "jobs").iterdir()}
            assert folders == set(jobs), "something is left of a job that was not started"

            for job_id in jobs[:3]:
                await asyncio.to_thread(daemon.workerctl, "stop", "--grace-seconds", "0", "--uuid", job_id)
                assert isinstance([event async for event in client.stream_log(job_id)][-1], JobEnd)
            async with asyncio.timeout(30):
                # The end is told just before the supervisor has gone, which is a process too.
                while (again := await asyncio.to_thread(spawn_by_command, daemon)).returncode != 0:
                    check_one_line(again, b"no process")
        assert "Traceback" not in daemon.errors()


async def test_without_inotify_watches_followers_are_turned_away_until_there_are_some_again(tmp_path: Path) -> None:
    """A user namespace has a limit of its own (namespaces(7)), so that nobody else on the machine is bound by it."""
    watches = 12 + len(tmp_path.parts)  # one for each folder above the state directory
    limit = f'echo {watches} >/proc/sys/user/max_inotify_watches && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh")
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespace with a limit on inotify watches can be made here")
    with running_daemon(tmp_path / "state", prefix=prefix) as daemon:
        async with daemon.client() as client:
            jobs = [await client.spawn(SLEEP) for _ in range(14)]  # a start takes no watch
            follow = ("stream-log", "--past-events", "--no-follow", "--uuid")
            check_one_line(daemon.workerctl(*follow, jobs[0]), b"inotify watch.*try again")

            # To stop one takes a watch too, so they are ended without the daemon.
            for job_id in jobs[1:]:
                os.kill((await client.status(job_id)).pid, signal.SIGKILL)

            async def works() -> bool:
                return (await asyncio.to_thread(daemon.workerctl, *follow, jobs[0])).returncode == 0

            await eventually(works)
        assert "Traceback" not in daemon.errors()


def memory_bytes(pid: int, what: str) -> int:
    """Tell a process's VmSize or VmRSS in bytes (proc_pid_status(5))."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def long_request(size_bytes: int) -> SpawnRequest:
    return SpawnRequest(program="true", args=["x" * 1000] * (size_bytes // 1000))


async def test_without_memory_requests_are_turned_away_or_cut_off_and_the_daemon_lives(daemon: Daemon) -> None:
    """The limit is set once the daemon serves, so that jobs are not bound by it. Any call may meet it meanwhile."""

    async def ask() -> str:
        async with Client(daemon.target(), patience=Patience(retry_seconds=0)) as client:
            try:
                await client.spawn(long_request(6_000_000))
            except CallFailed as error:
                return error.status.name
            except (Unreachable, Refused):
                return "cut off"
        raise AssertionError("no such job can be")

    async with daemon.client() as client:
        job_id = await client.spawn(SLEEP)
        limit = memory_bytes(daemon.pid, "VmSize") + (8 << 20)
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        answers = await asyncio.gather(*(ask() for _ in range(8)))
        print(f"no memory: {answers}")
        assert {"RESOURCE_EXHAUSTED", "cut off"} & set(answers), "there was memory enough"
        assert set(answers) <= {"RESOURCE_EXHAUSTED", "cut off", "INVALID_ARGUMENT"}
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async with daemon.client() as client:
        assert (await client.status(job_id)).state is JobState.RUNNING
        await client.spawn(TRUE)


async def test_a_request_that_is_too_long_is_refused_unread(daemon: Daemon) -> None:
    async with daemon.client() as client:
        await client.whoami()
        before = memory_bytes(daemon.pid, "VmRSS")
        for _ in range(3):
            with pytest.raises(CallFailed, match="the request has") as caught:
                await client.spawn(long_request(100_000_000))
            assert caught.value.reason is ErrorReason.LIMIT_REACHED
        grown = memory_bytes(daemon.pid, "VmRSS") - before
        print(f"requests of 100 MB: the daemon grew by {grown / 1e6:.1f} MB")
        assert grown < 30e6
        assert (await client.whoami()).user is not None  # over the same connection
