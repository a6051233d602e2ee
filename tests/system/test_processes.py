"""Several API processes on one port: any of them answers for any job, and each is replaced."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import ErrorReason, JobEnd, SpawnRequest

from tests.daemon import Daemon, running_daemon
from tests.engine.logs import has_ended
from tests.waiting import wait_until
from workerctl.errors import CallFailed
from workerd.api_process import Orders
from workerd.settings import Settings

COUNT = 2


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with several API processes."""
    with running_daemon(tmp_path / "state", "--processes", str(COUNT)) as daemon:
        yield daemon


def api_processes(daemon: Daemon) -> list[int]:
    """The ids of the API processes that there are."""
    children = map(int, Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split())
    return [pid for pid in children if not has_ended(pid)]


def listeners(daemon: Daemon) -> int:
    """How many sockets listen on the daemon's port (proc_net_tcp(5): the state 0A is LISTEN)."""
    port = f":{daemon.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(port) and row[3] == "0A" for row in rows)


def kill_and_wait(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    handle = os.pidfd_open(pid)
    signal.pidfd_send_signal(handle, number)
    assert select.select([handle], [], [], 30)[0], f"process {pid} did not end"
    os.close(handle)


async def spawn_at_once(daemon: Daemon, request: SpawnRequest, count: int = 8) -> list[str | BaseException]:
    """Send the same spawn over several connections, which the kernel spreads over the processes."""

    async def spawn() -> str:
        async with daemon.client() as client:
            return await client.spawn(request)

    return await asyncio.gather(*(spawn() for _ in range(count)), return_exceptions=True)


async def test_every_process_answers_for_every_job(several: Daemon) -> None:
    assert len(api_processes(several)) == listeners(several) == COUNT
    async with several.client() as client:
        job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
        pid = (await client.status(job_id)).pid
    for _ in range(12):  # connections: all with one process is as good as impossible
        async with several.client() as client:
            assert (await client.status(job_id)).pid == pid
            assert [job.id async for job in client.list_jobs()] == [job_id]
    async with several.client() as client:
        await client.stop(job_id)
    async with several.client() as client:
        assert [isinstance(event, JobEnd) async for event in client.stream_log(job_id)] == [False, True]


async def test_one_key_through_several_processes_at_once_starts_one_job(several: Daemon, tmp_path: Path) -> None:
    for number in range(3):
        script = f"echo once >> {tmp_path}/count{number}; exec sleep 1000"
        request = SpawnRequest(program="sh", args=["-c", script], request_key=f"key {number}")
        found = await spawn_at_once(several, request)
        assert len(set(found)) == 1, found
        wait_until((tmp_path / f"count{number}").exists, "the job did not print")
        assert (tmp_path / f"count{number}").read_text() == "once\n"
    assert len(list((several.state / "jobs").iterdir())) == 3


async def test_a_spawn_that_fails_in_several_processes_at_once_fails_alike_and_frees_its_key(several: Daemon) -> None:
    for number in range(3):
        key = f"key {number}"
        failures = await spawn_at_once(several, SpawnRequest(program="no-such-program", request_key=key))
        for failure in failures:
            assert isinstance(failure, CallFailed), failure
            assert failure.reason is ErrorReason.PROGRAM_NOT_FOUND
        assert list((several.state / "jobs").iterdir()) == []
        async with several.client() as client:
            await client.status(await client.spawn(SpawnRequest(program="true", request_key=f"good {key}")))
            job_id = await client.spawn(SpawnRequest(program="true", request_key=key))
            assert [isinstance(event, JobEnd) async for event in client.stream_log(job_id)] == [True]
        for name in [path.name for path in (several.state / "jobs").iterdir()]:
            async with several.client() as client:
                assert [event async for event in client.stream_log(name)]
                await client.remove(name)


def test_no_command_line_shows_how_the_daemon_is_set(several: Daemon) -> None:
    """Every account of the machine can read it (proc_pid_cmdline(5))."""
    for pid in api_processes(several):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        assert command[-2:] == [b"workerd.api_process", b""]


def test_killed_api_processes_are_replaced_and_followers_go_on(several: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = (
        several.workerctl("spawn", "--", "sh", "-c", f"echo before; cat {gate}; echo after").stdout.decode().strip()
    )
    command = several.command("stream-log", "--past-events", "--uuid", job_id)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"before\n"
        old = api_processes(several)
        for pid in old:
            kill_and_wait(pid)
        wait_until(lambda: listeners(several) == COUNT, "the API processes were not replaced")
        gate.write_text("meanwhile\n")
        rest, errors = follower.communicate(timeout=60)
    assert (rest, follower.returncode) == (b"meanwhile\nafter\n", 0), errors
    assert not set(old) & set(api_processes(several))
    assert several.errors().count("an API process ended and is replaced") == COUNT
    assert "signal 9" in several.errors()


def test_an_api_process_that_dies_again_and_again_is_replaced_less_and_less_often(several: Daemon) -> None:
    other, victim = api_processes(several)
    for _ in range(3):
        kill_and_wait(victim)
        wait_until(lambda: listeners(several) == COUNT, "the API process was not replaced")
        (victim,) = set(api_processes(several)) - {other}
    waits = [line.rpartition("wait_seconds=")[2] for line in several.errors().splitlines() if "is replaced" in line]
    assert [float(wait) for wait in waits] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_api_processes_end_with_the_main_process_and_the_next_daemon_takes_over_at_once(
    several: Daemon, number: signal.Signals
) -> None:
    job_id = several.workerctl("spawn", "--", "sh", "-c", "echo ready; exec sleep 1000").stdout.decode().strip()
    old = api_processes(several)
    os.kill(old[0], signal.SIGSTOP)  # which keeps nobody from being killed
    several.listen = f"127.0.0.1:{several.port}"
    several.stop(number)
    several.start()
    assert all(has_ended(pid) for pid in old)
    stop = several.workerctl("stop", "--grace-seconds", "0", "--uuid", job_id)
    assert stop.returncode == 0, stop.stderr
    log = several.workerctl("stream-log", "--past-events", "--uuid", job_id)
    assert (log.stdout, log.returncode) == (b"ready\n", 0)


def test_a_port_that_is_in_use_is_refused_in_one_line(several: Daemon, tmp_path: Path) -> None:
    """Another daemon's shared port could be taken, and each would get some of the other's calls."""
    other = Daemon(tmp_path / "other", ("--processes", "2"), f"127.0.0.1:{several.port}")
    with pytest.raises(AssertionError, match=r"ended with 1: (?s:.*)cannot listen on"):
        other.start()
    assert "Traceback" not in other.errors()


@pytest.fixture
def without_listeners(several: Daemon) -> Iterator[Daemon]:
    """A daemon of which no API process listens, until its main process goes on."""
    os.kill(several.pid, signal.SIGSTOP)
    try:
        for pid in api_processes(several):
            kill_and_wait(pid)
        yield several
    finally:
        os.kill(several.pid, signal.SIGCONT)


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_nobody_else_gets_the_port_while_no_api_process_listens(without_listeners: Daemon, address: str) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            stranger.bind((address, without_listeners.port))


def test_an_api_process_that_cannot_listen_is_to_be_tried_again(tmp_path: Path) -> None:
    """It reports nothing: what it reports ends the daemon."""
    state = tmp_path / "state"
    with running_daemon(state):  # which makes what an API process finds
        pass
    with socket.create_server(("127.0.0.1", 0)) as stranger, contextlib.ExitStack() as stack:
        settings = Settings("127.0.0.1", stranger.getsockname()[1], state, state / "pki", state / "policies")
        report, theirs = os.pipe()
        stack.callback(os.close, report)
        orders = Orders(settings, os.getpid(), theirs, theirs)
        with orders.open() as given:
            command = orders.command()
            result = subprocess.run(
                command, stdin=given, stderr=subprocess.PIPE, pass_fds=[theirs], timeout=60, check=False
            )
        os.close(theirs)
        assert os.read(report, 1000) == b""
    assert result.returncode == 1
    assert b"an API process cannot serve yet" in result.stderr
    assert b"cannot listen on" in result.stderr


def test_what_an_api_process_cannot_be_configured_with_ends_the_daemon_with_that_reason(several: Daemon) -> None:
    (several.pki.path / "server.key").unlink()
    (victim, _) = api_processes(several)
    kill_and_wait(victim)
    assert several.process is not None
    assert several.process.wait(60) == 1
    several.process = None
    assert "server.key" in several.errors().splitlines()[-1]
    assert several.errors().splitlines()[-1].startswith("workerd: ")


def test_the_number_of_processes_is_checked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workerd", "--processes", "0", "--state-dir", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
    assert b"--processes 0" in result.stderr


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_service_manager_is_told_once_the_daemon_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with running_daemon(tmp_path / "state", "--processes", count):
            assert manager.recv(100) == b"READY=1"


def test_a_service_manager_that_was_stopped_does_not_keep_the_daemon_from_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others,
    ):
        manager.bind(str(tmp_path / "notify"))
        others.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # it receives nothing, and its queue is full (unix(7))
            while others.sendto(b"STATUS=1", str(tmp_path / "notify")):
                pass
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with running_daemon(tmp_path / "state") as daemon:
            assert daemon.workerctl("run", "--", "echo", "served").stdout == b"served\n"
