"""Clients while the connection breaks at any byte, and while the daemon goes away and comes back."""

import asyncio
import contextlib
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import Daemon, end_jobs
from tests.proxy import Fault, Proxy
from workerctl.client import Client
from workerctl.errors import CallFailed, ConnectionLost, GaveUp, JobNotFound, Unreachable
from workerctl.events import Output
from workerctl.exit_codes import ExitCode
from workerctl.retry import Patience

PATIENT = Patience(retry_seconds=60, keepalive_seconds=20)


@pytest.fixture
def proxy(shared_daemon: Daemon) -> Iterator[Proxy]:
    with Proxy(shared_daemon.port) as proxy:
        yield proxy


def client_through(proxy: Proxy, daemon: Daemon, patience: Patience = PATIENT) -> Client:
    return Client(daemon.target(endpoint=proxy.endpoint), patience=patience)


def restart_later(daemon: Daemon, seconds: float) -> None:
    """Kill a daemon, and start it again on the same port after some time."""
    daemon.listen = f"127.0.0.1:{daemon.port}"
    daemon.stop(signal.SIGKILL)
    time.sleep(seconds)
    daemon.start()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut", "reset"])
async def test_a_spawn_that_is_cut_at_any_byte_of_the_answer_runs_once(
    shared_daemon: Daemon, proxy: Proxy, tmp_path: Path, kind: str
) -> None:
    """The job appends to a file. Where a connection ends moves on from the handshake to the end of the answer."""
    file = tmp_path / "ran"
    wish = SpawnRequest(program="sh", args=["-c", f"echo x >>{file}"])
    async with client_through(proxy, shared_daemon) as client:
        await client.whoami()
        before = proxy.connections[0].passed["down"]
        await client.spawn(wish)
        answer_ends = proxy.connections[0].passed["down"]
    step = (answer_ends - before // 2) // (60 if kind == "cut" else 25)
    spawned = 1
    for number in (*range(0, before // 2, 500), *range(before // 2, answer_ends - 20, step), *range(-20, 0)):
        proxy.plan(Fault("cut" if kind == "cut" else "reset", number % answer_ends, "down"))
        async with client_through(proxy, shared_daemon) as client:
            job_id = await client.spawn(wish)
            spawned += 1
            async with contextlib.aclosing(client.stream_log(job_id)) as events:
                async for event in events:
                    assert not isinstance(event, Output)
        assert file.read_text() == "x\n" * spawned, f"cut after {number} bytes"
    assert len(proxy.connections) > spawned


@pytest.mark.slow
async def test_a_spawn_that_is_cut_at_any_byte_of_the_request_runs_once(
    shared_daemon: Daemon, proxy: Proxy, tmp_path: Path
) -> None:
    file = tmp_path / "ran"
    wish = SpawnRequest(program="sh", args=["-c", f"echo x >>{file}"])
    async with client_through(proxy, shared_daemon) as client:
        await client.spawn(wish)
        request_ends = proxy.connections[0].passed["up"]
    for number, at in enumerate(range(0, request_ends, 61), 2):
        proxy.plan(Fault("cut", at, "up"))
        async with client_through(proxy, shared_daemon) as client:
            job_id = await client.spawn(wish)
            async for _ in client.stream_log(job_id):
                pass
        assert file.read_text() == "x\n" * number


@pytest.mark.slow
async def test_a_log_that_is_cut_again_and_again_is_neither_doubled_nor_lost(
    shared_daemon: Daemon, proxy: Proxy
) -> None:
    """Each connection passes on a few bytes more than the one before, from within the handshake to the whole log."""
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; echo err $i >&2; i=$((i+1)); done"
    async with shared_daemon.client() as direct:
        job_id = await direct.spawn(SpawnRequest(program="sh", args=["-c", script]))
    expected = {1: b"".join(b"line %d\n" % i for i in range(2000)), 2: b"".join(b"err %d\n" % i for i in range(2000))}
    for first, step in ((500, 1500), (4000, 313), (4001, 1511)):
        proxy.plan(*(Fault("reset" if at % 2 else "cut", at, "down") for at in range(first, first + 8 * step, step)))
        received = {1: b"", 2: b""}
        offset = 0
        async with (
            client_through(proxy, shared_daemon) as client,
            contextlib.aclosing(client.stream_log(job_id)) as events,
        ):
            async for event in events:
                if isinstance(event, Output):
                    assert event.offset_bytes == offset
                    offset += len(event.data)
                    received[event.stream] += event.data
        assert received == expected
    assert sum(connection.fault is None and not connection.open for connection in proxy.connections) > 5


@pytest.mark.slow  # it restarts the daemon five times
async def test_every_call_that_may_be_repeated_goes_through_a_restart(daemon: Daemon) -> None:
    said: list[str] = []
    async with Client(daemon.target(), on_retry=said.append) as client:
        job_id = await client.spawn(SpawnRequest(program="sleep", args=["1000"]))
        for call in (
            lambda: client.spawn(SpawnRequest(program="true")),
            lambda: client.status(job_id),
            client.whoami,
            lambda: anext(client.list_jobs()),
            lambda: client.stop(job_id),
        ):
            restarting = asyncio.create_task(asyncio.to_thread(restart_later, daemon, 0.5))
            while daemon.process is not None:
                await asyncio.sleep(0.001)
            assert await call()
            await restarting
    assert 1 <= len(said) <= 5  # a line for each outage, however many attempts it took
    assert all(line.endswith("; trying again") for line in said)


def test_run_goes_through_a_restart_with_one_line(daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = daemon.command("run", "--", "sh", "-c", f"echo before; cat {gate}; echo after; exit 7")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"before\n"
        with ThreadPoolExecutor() as pool:
            restarting = pool.submit(restart_later, daemon, 1.0)
            gate.write_text("meanwhile\n")
            output, errors = run.communicate(timeout=60)
            restarting.result()
    assert (output, run.returncode) == (b"meanwhile\nafter\n", 7)
    assert errors.count(b"\n") == 1
    # How much had come before the daemon went is not said here.
    assert errors.endswith(tuple(b"; trying again from byte %d\n" % byte for byte in (7, 17, 23)))


def test_a_call_that_finds_the_daemon_just_being_restarted_waits_for_it(daemon: Daemon) -> None:
    """The first contact: nothing is said, because a daemon that starts is there within a moment."""
    with Proxy(daemon.port) as proxy:
        proxy.plan(Fault("cut"), Fault("reset"), Fault("cut", 100))
        result = daemon.workerctl("whoami", endpoint=proxy.endpoint)
        assert (result.returncode, result.stderr) == (0, b"")
        assert len(proxy.connections) == 4


async def test_nobody_at_the_first_contact_is_told_within_seconds(shared_daemon: Daemon) -> None:
    with Proxy(1) as proxy:
        endpoint = proxy.endpoint
    began = time.monotonic()
    async with Client(shared_daemon.target(endpoint=endpoint)) as client:
        with pytest.raises(GaveUp, match=rf"{endpoint}: .*is workerd running there.*\(gave up after 2 s\)"):
            await client.whoami()
    assert time.monotonic() - began < 10


async def test_a_call_is_given_up_in_time_and_says_how_long_and_where(shared_daemon: Daemon, proxy: Proxy) -> None:
    async with client_through(proxy, shared_daemon, Patience(retry_seconds=1)) as client:
        await client.whoami()
        proxy.otherwise(Fault("cut"))
        proxy.cut()
        with pytest.raises(GaveUp, match=rf"{proxy.endpoint}: .*\(gave up after 1 s\)") as caught:
            await client.whoami()
        assert isinstance(caught.value.__cause__, Unreachable)
        proxy.otherwise(None)
        await client.whoami()


async def test_a_daemon_that_breaks_every_connection_is_given_up(shared_daemon: Daemon, proxy: Proxy) -> None:
    """Each is opened, and heard of: that alone is no success."""
    async with client_through(proxy, shared_daemon, Patience(retry_seconds=1)) as client:
        await client.whoami()
        heard = proxy.connections[0].passed["down"]
        proxy.otherwise(Fault("cut", heard - 80))
        proxy.cut()
        with pytest.raises(GaveUp):
            await client.whoami()


async def test_no_retry_when_none_is_wanted(shared_daemon: Daemon, proxy: Proxy) -> None:
    async with client_through(proxy, shared_daemon, Patience(retry_seconds=0)) as client:
        await client.whoami()
        proxy.otherwise(Fault("cut"))
        proxy.cut()
        with pytest.raises(Unreachable) as caught:
            await client.whoami()
    assert not isinstance(caught.value, GaveUp)


async def test_an_answer_is_not_asked_for_again(shared_daemon: Daemon, proxy: Proxy) -> None:
    async with client_through(proxy, shared_daemon) as client:
        with pytest.raises(JobNotFound):
            await client.status("00000000-0000-4000-8000-000000000000")
        with pytest.raises(CallFailed):
            await client.spawn(SpawnRequest(program="/nowhere/to/be/found"))
    assert len(proxy.connections) == 1


async def test_a_stranger_s_call_is_made_once_unless_it_says_otherwise(shared_daemon: Daemon, proxy: Proxy) -> None:
    calls = itertools.count()

    async def call(channel: object) -> None:
        next(calls)
        proxy.cut()
        await whoami(channel)

    async def whoami(channel: object) -> None:
        from worker_api.worker.v1 import WhoAmIRequest, WorkerServiceStub

        await WorkerServiceStub(channel).who_am_i(WhoAmIRequest())  # type: ignore[arg-type]

    async with client_through(proxy, shared_daemon) as client:
        await client.whoami()
        with pytest.raises(ConnectionLost):
            await client.call(call)
    assert next(calls) == 1


@pytest.mark.parametrize("command", [("status", "--uuid", "00000000-0000-4000-8000-000000000000"), ("whoami",)])
def test_interrupt_ends_a_command_that_tries_again(
    shared_daemon: Daemon, proxy: Proxy, command: tuple[str, ...]
) -> None:
    """The daemon is heard, and the connection cut before the answer, always."""
    with contextlib.ExitStack() as stack:
        assert shared_daemon.workerctl("whoami", endpoint=proxy.endpoint).returncode == 0
        proxy.otherwise(Fault("cut", proxy.connections[0].passed["down"] - 100))
        running = stack.enter_context(
            subprocess.Popen(shared_daemon.command(*command, endpoint=proxy.endpoint), stderr=subprocess.PIPE)
        )
        assert running.stderr is not None
        assert b"trying again" in running.stderr.readline()
        time.sleep(0.5)
        began = time.monotonic()
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=30) == ExitCode.INTERRUPTED
        assert time.monotonic() - began < 5


def test_a_second_interrupt_leaves_run_while_the_daemon_is_away(daemon: Daemon) -> None:
    command = daemon.command("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == b"ready\n"
        daemon.stop(signal.SIGKILL)
        assert b"trying again from byte 6" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        assert b"as soon as the daemon is back" in run.stderr.readline()
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) == ExitCode.INTERRUPTED
        assert time.monotonic() - began < 5
        assert re.search(rb"workerctl --endpoint .* stop --uuid", run.stderr.read())


def test_one_interrupt_stops_the_job_when_the_daemon_is_back(daemon: Daemon) -> None:
    command = daemon.command("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == b"ready\n"
        daemon.listen = f"127.0.0.1:{daemon.port}"
        daemon.stop(signal.SIGKILL)
        assert b"trying again from byte 6" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        assert b"as soon as the daemon is back" in run.stderr.readline()
        daemon.start()
        assert run.wait(timeout=60) == ExitCode.INTERRUPTED
    assert b"running" not in daemon.workerctl("list").stdout


def test_your_own_daemon_is_started_again_for_a_follower(tmp_path: Path) -> None:
    """It comes back on another port: no two daemons choose the same."""
    state = tmp_path / ".local" / "state" / "workerd"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    def end_daemon(number: signal.Signals) -> None:
        handle = os.pidfd_open(int((state / "lock").read_text()))
        try:
            signal.pidfd_send_signal(handle, number)
            # A daemon that still drains would pass on what the job prints next, and the follower would notice nothing.
            assert select.select([handle], [], [], 30)[0], "the daemon is still running"
        finally:
            os.close(handle)

    command = [sys.executable, "-m", "workerctl", "run", "--", "sh", "-c", f"echo a; cat {gate}; cat {gate}; echo d"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == b"a\n"
        first = (state / "endpoint").read_text()
        end_daemon(signal.SIGKILL)
        gate.write_text("b\n")
        assert run.stdout.readline() == b"b\n"
        assert (state / "endpoint").read_text() != first
        end_daemon(signal.SIGTERM)
        gate.write_text("c\n")
        output, errors = run.communicate(timeout=60)
    end_daemon(signal.SIGTERM)
    end_jobs(state)
    assert (output, run.returncode) == (b"c\nd\n", 0), errors
    assert errors.count(b"\n") == 2, errors
