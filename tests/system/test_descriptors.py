"""The daemon does not run out of descriptors when users open all that they may, under a low limit."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import USER, Daemon, running_daemon
from tests.system.test_reload import TAKEN_UP, wait_told
from workerctl.client import Client
from workerctl.errors import CallFailed, ClientError
from workerctl.retry import Patience

LIMIT = 256
BOB, CAROL, DAVE = "bob", "carol", "dave"
SLEEP = SpawnRequest(program="sleep", args=["1000"], working_directory="/")
TRUE = SpawnRequest(program="true", working_directory="/")
WITHOUT_CAROL = 'forbid (principal, action, resource) when { principal.name == "carol" };'
MANY = 60
LIMIT_SECONDS = 60


@contextlib.contextmanager
def counting_open_files(pid: int) -> Iterator[list[int]]:
    """Count a process's open files again and again, and keep the highest number."""
    most, ended = [0], threading.Event()

    def count() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], len(os.listdir(f"/proc/{pid}/fd")))

    counter = threading.Thread(target=count)
    counter.start()
    try:
        yield most
    finally:
        ended.set()
        counter.join()


async def connect_beyond(daemon: Daemon, user: str, stack: contextlib.AsyncExitStack) -> list[Client]:
    """Open connections until one is refused, and return those that are open."""
    clients: list[Client] = []
    for _ in range(MANY):
        client = await stack.enter_async_context(Client(daemon.target(user), patience=Patience(retry_seconds=0)))
        try:
            await client.whoami()
        except ClientError:
            return clients
        clients.append(client)
    raise AssertionError("no connection was refused")


async def follow_beyond(client: Client) -> list[asyncio.Task[None]]:
    """Follow a job more often than is permitted, and return the followers that were not refused."""
    job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
    ready = asyncio.Queue[bool]()

    async def follow() -> None:
        try:
            async for _ in client.stream_log(job_id):
                ready.put_nowait(True)
        except CallFailed as error:
            ready.put_nowait(error.reason is not ErrorReason.LIMIT_REACHED)

    followers = [asyncio.create_task(follow()) for _ in range(MANY)]
    async with asyncio.timeout(LIMIT_SECONDS):
        let = sum([await ready.get() for _ in range(MANY)])
    assert 0 < let < MANY
    return followers


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_no_user_can_use_up_the_descriptors(tmp_path: Path, processes: str) -> None:
    """Two users open all that they may, and start and end many jobs; other clients connect and send nothing."""
    prefix = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
    with running_daemon(tmp_path / "state", "--processes", processes, prefix=prefix) as daemon:
        assert "RLIMIT_NOFILE" in daemon.errors() and "LimitNOFILE=" in daemon.errors()
        for user in (BOB, CAROL, DAVE):
            daemon.pki.issue_client(user)
        with contextlib.ExitStack() as counters:
            counts = [counters.enter_context(counting_open_files(pid)) for pid in answering(daemon, processes)]
            async with contextlib.AsyncExitStack() as stack:
                carol = await stack.enter_async_context(daemon.client(CAROL))
                await carol.whoami()
                followers: list[asyncio.Task[None]] = []
                greedy = [(await connect_beyond(daemon, user, stack))[0] for user in (USER, BOB)]
                for client in greedy:
                    followers += await follow_beyond(client)
                strangers = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(MANY)]
                async with asyncio.timeout(LIMIT_SECONDS):
                    jobs = await asyncio.gather(*(client.spawn(TRUE) for client in greedy for _ in range(MANY)))
                assert len(set(jobs)) == 2 * MANY, "they wait for their turn"

                daemon.pki.revoke(DAVE)
                await asyncio.to_thread(wait_told, daemon, TAKEN_UP)
                (daemon.state / "policies").mkdir()
                (daemon.state / "policies" / "carol.cedar").write_text(WITHOUT_CAROL)
                in_force = "policies were changed and are in force from now on"
                await asyncio.to_thread(wait_told, daemon, in_force)
                with pytest.raises(CallFailed) as refused:
                    await carol.whoami()
                assert refused.value.reason is ErrorReason.NOT_PERMITTED
                for follower in followers:
                    follower.cancel()
                await asyncio.gather(*followers, return_exceptions=True)
                for stranger in strangers:
                    stranger.close()
            print(f"{[most for [most] in counts]} of {LIMIT} descriptors were open at most")
            assert max(most for [most] in counts) < LIMIT
        assert "descriptor left" not in daemon.errors() and "Too many open files" not in daemon.errors()
        assert "Traceback" not in daemon.errors()


def answering(daemon: Daemon, processes: str) -> list[int]:
    """Return the ids of the daemon's processes, without the zygotes."""
    if processes == "1":
        return [daemon.pid]
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return [daemon.pid, *map(int, children)]


def test_a_daemon_with_too_few_descriptors_says_how_to_get_more(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"may have 100 descriptors.*needs 256.*LimitNOFILE="),
        running_daemon(tmp_path / "state", prefix=("prlimit", "--nofile=100:100")),
    ):
        pass


def test_connections_beyond_the_limit_of_a_user_take_no_room_from_others(tmp_path: Path) -> None:
    """A client may leave the reason for the end of its connection unread for as long as the daemon waits."""
    with running_daemon(tmp_path / "state", prefix=("prlimit", f"--nofile={LIMIT}:{LIMIT}")) as daemon:
        daemon.pki.issue_client(BOB)
        context, target = daemon.target().tls(), ("127.0.0.1", daemon.port)
        with contextlib.ExitStack() as stack:
            for number in range(3 * MANY):
                plain = stack.enter_context(socket.create_connection(target, timeout=10))
                with contextlib.suppress(OSError):
                    stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
                if number % MANY == MANY - 1:
                    assert daemon.workerctl("whoami", user=BOB).returncode == 0
        assert "limit=max-connections " not in daemon.errors()
