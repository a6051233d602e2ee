"""Peers that vanish without a word, and peers that are only slow."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import Daemon, running_daemon
from tests.proxy import Fault, Proxy
from workerctl.client import Client
from workerctl.errors import GaveUp
from workerctl.events import Output
from workerctl.retry import Patience

SECONDS = 2.0
LATE = 15.0  # what a loaded machine may add to any time


@pytest.fixture(scope="module")
def watchful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that takes a connection for dead after a short time."""
    with running_daemon(tmp_path_factory.mktemp("daemon") / "state", "--keepalive-seconds", str(SECONDS)) as daemon:
        yield daemon


@pytest.fixture
def proxy(watchful: Daemon) -> Iterator[Proxy]:
    with Proxy(watchful.port) as proxy:
        yield proxy


def client_through(proxy: Proxy, daemon: Daemon, keepalive_seconds: float) -> Client:
    patience = Patience(keepalive_seconds=keepalive_seconds)
    return Client(daemon.target(endpoint=proxy.endpoint), patience=patience)


def held(daemon: Daemon) -> tuple[int, int]:
    """What the daemon holds: descriptors, and inotify watches (proc_pid_fdinfo(5))."""
    files = list(Path(f"/proc/{daemon.pid}/fdinfo").iterdir())
    watches = 0
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            watches += len(re.findall("^inotify ", path.read_text(), re.MULTILINE))
    return len(files), watches


def is_connected(daemon: Daemon) -> bool:
    """Whether anybody is connected to the daemon (proc_pid_net(5)): its port is the local one, the state 01."""
    rows = [row.split() for row in Path(f"/proc/{daemon.pid}/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{daemon.port:04X}") and row[3] == "01" for row in rows)


async def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition, and tell how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def test_a_follower_whose_connection_goes_silent_connects_again_and_gets_every_byte(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    """The daemon here notices nothing for long: it is the client that does."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    output = b""
    began = time.monotonic()
    with Proxy(shared_daemon.port) as proxy:
        async with client_through(proxy, shared_daemon, SECONDS) as client:
            job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", f"echo before; cat {gate}; echo after"]))
            async with contextlib.aclosing(client.stream_log(job_id)) as events:
                async for event in events:
                    if isinstance(event, Output):
                        output += event.data
                    if output == b"before\n":
                        proxy.stall()
                        began = time.monotonic()
                        await asyncio.to_thread(gate.write_text, "meanwhile\n")
            assert time.monotonic() - began < SECONDS + LATE
            assert output == b"before\nmeanwhile\nafter\n"
            assert len(proxy.connections) == 2


async def test_a_call_on_a_silent_connection_is_made_again(watchful: Daemon, proxy: Proxy) -> None:
    async with client_through(proxy, watchful, SECONDS) as client:
        await client.whoami()
        proxy.stall()
        many = (client.spawn(SpawnRequest(program="true", args=["x" * 100_000])) for _ in range(20))
        assert len(set(await asyncio.wait_for(asyncio.gather(*many), SECONDS + LATE))) == 20
        assert len(proxy.connections) == 2


async def test_a_daemon_that_accepts_and_says_nothing_is_told_as_that(watchful: Daemon, proxy: Proxy) -> None:
    proxy.otherwise(Fault("stall"))
    async with client_through(proxy, watchful, SECONDS) as client:
        with pytest.raises(GaveUp, match="no answer within 2 s"):
            await asyncio.wait_for(client.whoami(), 2 * SECONDS + LATE)


@pytest.mark.slow
async def test_the_daemon_lets_go_of_followers_that_vanished(watchful: Daemon, proxy: Proxy) -> None:
    async with watchful.client() as direct:
        job_id = await direct.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
        before = held(watchful)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                client = await stack.enter_async_context(client_through(proxy, watchful, 1000))
                for _ in range(2):
                    events = await stack.enter_async_context(contextlib.aclosing(client.stream_log(job_id)))
                    await anext(events)
            during = held(watchful)
            assert during[0] >= before[0] + 5
            assert during[1] > before[1]
            proxy.stall()
            assert await wait_until(lambda: held(watchful) == before, SECONDS + LATE) > SECONDS / 2
        await direct.stop(job_id)


async def test_the_daemon_lets_go_of_a_vanished_follower_that_it_is_sending_to(watchful: Daemon, proxy: Proxy) -> None:
    """Its buffers are full then, and a polite close would wait for room in them."""
    async with watchful.client() as direct:
        job_id = await direct.spawn(SpawnRequest(program="sh", args=["-c", "head -c 100000000 /dev/zero; sleep 1000"]))
        before = held(watchful)
        async with client_through(proxy, watchful, 1000) as client:
            proxy.plan(Fault("stall", 1_000_000, "down"))
            async with contextlib.aclosing(client.stream_log(job_id)) as events:
                await anext(events)
                await wait_until(lambda: held(watchful)[0] > before[0], LATE)
                assert await wait_until(lambda: held(watchful) == before, SECONDS + LATE) > SECONDS / 2
        await direct.stop(job_id)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "stream-log"])
def test_a_reader_that_takes_nothing_for_long_is_not_taken_for_dead(
    watchful: Daemon, proxy: Proxy, command: str
) -> None:
    """As behind a pager: the command lives, and nobody takes what it prints."""
    size = 50_000_000
    program = ("--", "head", "-c", str(size), "/dev/zero")
    if command == "run":
        arguments: tuple[str, ...] = ("run", *program)
    else:
        job_id = watchful.workerctl("spawn", *program).stdout.decode().strip()
        arguments = ("stream-log", "--past-events", "--uuid", job_id)
    keepalive = ("--keepalive-seconds", str(SECONDS))
    running = watchful.command(*keepalive, *arguments, endpoint=proxy.endpoint)
    with subprocess.Popen(running, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        first = reader.stdout.read(1)
        time.sleep(3 * SECONDS)
        output, errors = reader.communicate(timeout=60)
    assert (len(first + output), errors, reader.returncode) == (size, b"", 0)
    assert len(proxy.connections) == 1


def test_a_reader_that_is_stopped_is_dropped_and_goes_on_afterwards(watchful: Daemon, proxy: Proxy) -> None:
    size = 50_000_000
    command = watchful.command("run", "--", "head", "-c", str(size), "/dev/zero", endpoint=proxy.endpoint)
    with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        first = reader.stdout.read(1)
        reader.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + SECONDS + LATE
        while is_connected(watchful):  # the proxy is held up by what the stopped one does not read: it cannot tell
            assert time.monotonic() < deadline
            time.sleep(0.05)
        reader.send_signal(signal.SIGCONT)
        output, errors = reader.communicate(timeout=60)
    assert (len(first + output), reader.returncode) == (size, 0)
    assert errors.count(b"trying again from byte") == 1


async def test_a_daemon_that_was_stopped_itself_drops_nobody(watchful: Daemon, proxy: Proxy) -> None:
    async with client_through(proxy, watchful, 1000) as client:
        await client.whoami()
        os.kill(watchful.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(2 * SECONDS)
        finally:
            os.kill(watchful.pid, signal.SIGCONT)
        await client.whoami()
        await asyncio.sleep(SECONDS)
        await client.whoami()
    assert len(proxy.connections) == 1


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_impossible_times_are_refused_in_one_line(shared_daemon: Daemon, tmp_path: Path, value: str) -> None:
    for command in (
        shared_daemon.command("whoami", f"--keepalive-seconds={value}"),
        [sys.executable, "-m", "workerd", "--state-dir", str(tmp_path), f"--keepalive-seconds={value}"],
    ):
        result = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert result.returncode in (1, 2)
        assert b"--keepalive-seconds" in result.stderr
        assert result.stderr.count(b"\n") == 1
