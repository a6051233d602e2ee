"""Connections that are too many, too slow or a nuisance are closed, and other users notice nothing.

Each attack comes over real connections, from whoever has a certificate or from whoever has none.
"""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, ResponseReceived, StreamEnded, TrailersReceived
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from worker_api.worker.v1 import SpawnRequest, StreamLogRequest

from tests.daemon import USER, Daemon
from tests.holding import open_of, resident_bytes
from tests.raw import Peer, client_hello, peer
from tests.waiting import wait_until

OTHER = "other"
CONNECTIONS = 1000  # several times the handshakes that are let be under way
SOON_SECONDS = 5.0  # on a machine that is busy with the attack as well
MEGABYTE = 1 << 20
TALK = SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"])
PING_FRAME = b"\0\0\x08\x06\0\0\0\0\0" + b"flooding"
SETTINGS_FRAME = b"\0\0\0\x04\0\0\0\0\0"
WINDOW_FRAME = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01"
PRIORITY_FRAME = b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\x10"


@contextlib.contextmanager
def limited(tmp_path: Path, *options: str) -> Iterator[Daemon]:
    """A daemon with limits, that knows another user."""
    daemon = Daemon(tmp_path / "state", options)
    daemon.pki.issue_client(OTHER)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


async def ask(daemon: Daemon, user: str = OTHER) -> float:
    """Make a call over a new connection, and tell how many seconds it took."""
    begun = time.monotonic()
    async with daemon.client(user) as client:
        await client.whoami()
    return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["nothing", "half a ClientHello", "a ClientHello"])
def test_handshakes_that_lead_to_nothing_lock_nobody_out(tmp_path: Path, share: float) -> None:
    hello = client_hello(ssl.create_default_context())
    said = hello[: int(len(hello) * share)]
    with limited(tmp_path) as daemon, contextlib.ExitStack() as stack:
        asyncio.run(ask(daemon))
        before = resident_bytes(daemon.pid)
        amid: subprocess.Popen[bytes] | None = None
        for number in range(CONNECTIONS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            with contextlib.suppress(OSError):
                connection.sendall(said)
            if number == CONNECTIONS // 2:
                amid = subprocess.Popen(daemon.command("whoami", user=OTHER), stdout=subprocess.DEVNULL)
        seconds = asyncio.run(ask(daemon))
        grown = (resident_bytes(daemon.pid) - before) / MEGABYTE
        assert amid is not None and amid.wait(60) == 0
        open_now, _ = open_of(daemon.pid)
        print(f"{CONNECTIONS} connections: answer after {seconds:.2f} s, {grown:.0f} MB more, {open_now} descriptors")
        assert seconds < SOON_SECONDS
        assert grown < 60
        assert open_now < 400
        assert daemon.errors().count("limit=max-handshakes") == 1


def test_a_handshake_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with (
        limited(tmp_path, "--handshake-seconds", "0.5") as daemon,
        socket.create_connection(("127.0.0.1", daemon.port)) as silent,
    ):
        silent.settimeout(10)
        assert silent.recv(1) == b""
        wait_until(lambda: "limit=handshake-seconds" in daemon.errors(), "the log does not tell")
        asyncio.run(ask(daemon))


@pytest.mark.parametrize("sent", [b"", b"\0\0\0\0\x05ab", b"\0\0\0\0\0"], ids=["none", "a part", "all but the end"])
def test_a_request_that_does_not_arrive_in_time_is_ended(tmp_path: Path, sent: bytes) -> None:
    with limited(tmp_path, "--request-seconds", "0.5") as daemon, peer(daemon) as caller:
        stream_id = caller.open("WhoAmI")
        if sent:
            caller.h2.send_data(stream_id, sent)
        caller.send()
        assert isinstance(caller.read(StreamEnded), StreamEnded)
        (trailers,) = (event for event in caller.events if isinstance(event, ResponseReceived | TrailersReceived))
        message = dict(trailers.headers)[b"grpc-message"]
        assert message.startswith(b"the request has not arrived within 0.5 s (request-seconds)")
        asyncio.run(ask(daemon))


def test_only_so_many_connections_are_there(tmp_path: Path) -> None:
    with limited(tmp_path, "--max-connections", "4", "--max-connections-per-user", "2") as daemon:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(peer(daemon))
            third = stack.enter_context(peer(daemon))
            goodbye = third.read()
            assert isinstance(goodbye, ConnectionTerminated)
            assert goodbye.error_code == ErrorCodes.ENHANCE_YOUR_CALM
            assert b"(max-connections-per-user): close some" in (goodbye.additional_data or b"")
            asyncio.run(ask(daemon))
            for _ in range(2):
                stack.enter_context(peer(daemon, OTHER))
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            plain.settimeout(10)
            assert plain.recv(1) == b""  # before any handshake
            wait_until(lambda: "limit=max-connections " in daemon.errors(), "the log does not tell")
        asyncio.run(ask(daemon, USER))


async def test_a_connection_without_a_call_is_closed_and_a_follower_is_none(tmp_path: Path) -> None:
    with limited(tmp_path, "--idle-seconds", "0.4") as daemon, peer(daemon) as idle:
        async with daemon.client(OTHER) as client:
            job_id = await client.spawn(TALK)
            async with contextlib.aclosing(client.stream_log(job_id)) as log:
                await anext(log)
                begun = time.monotonic()
                goodbye = await asyncio.to_thread(idle.read)
                assert isinstance(goodbye, ConnectionTerminated)
                assert goodbye.error_code == ErrorCodes.NO_ERROR
                assert time.monotonic() - begun < SOON_SECONDS
                following = asyncio.ensure_future(anext(log))
                await asyncio.sleep(1.0)
                assert not following.done()
                await client.stop(job_id)
                await following
            for _ in range(2):
                await asyncio.sleep(0.7)  # in which its connection is closed
                await client.whoami()
            assert client._channel is not None and not client._channel.lost


def test_a_connection_is_idle_after_a_call_that_was_reset_at_once(tmp_path: Path) -> None:
    """The call's task is cancelled before it begins, and the call is over all the same."""
    with limited(tmp_path, "--idle-seconds", "0.4") as daemon, peer(daemon) as idle:
        idle.h2.reset_stream(idle.open("WhoAmI"))
        idle.send()
        goodbye = idle.read()
        assert isinstance(goodbye, ConnectionTerminated)
        assert goodbye.error_code == ErrorCodes.NO_ERROR


def test_a_connection_with_headers_of_any_length_is_closed_and_others_are_not(tmp_path: Path) -> None:
    with limited(tmp_path, "--max-header-bytes", "2000") as daemon, peer(daemon) as good, peer(daemon) as bad:
        stream_id = good.open("WhoAmI", ("note", "x" * 1000))
        good.request(stream_id, b"")
        good.send()
        assert isinstance(good.read(StreamEnded), StreamEnded)
        assert good.h2.remote_settings[SettingCodes.MAX_HEADER_LIST_SIZE] == 2000
        bad.open("WhoAmI", ("note", "x" * 20_000))
        bad.send()
        goodbye = bad.read()
        assert isinstance(goodbye, ConnectionTerminated)
        assert goodbye.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        stream_id = good.open("WhoAmI")
        good.request(stream_id, b"")
        good.send()
        assert isinstance(good.read(StreamEnded), StreamEnded)


def test_a_frame_that_says_it_is_too_long_is_not_waited_for(tmp_path: Path) -> None:
    with limited(tmp_path) as daemon, peer(daemon) as bad:
        bad.send(b"\xff\xff\xff\x06\0\0\0\0\0")
        goodbye = bad.read()
        assert isinstance(goodbye, ConnectionTerminated)
        assert goodbye.error_code == ErrorCodes.FRAME_SIZE_ERROR


def test_requests_that_never_end_are_only_so_many(tmp_path: Path) -> None:
    """What is on its way is taken into memory as it comes, so it is what is announced that counts."""
    size = 100_000
    with limited(tmp_path, "--max-request-bytes", str(size)) as daemon, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(daemon)) for _ in range(2)]
        for bad in peers:
            for _ in range(5):
                bad.h2.send_data(bad.open("Spawn"), b"\0" + size.to_bytes(4) + b"x" * 1000)
            bad.send()
            bad.read(seconds=1.0)
        answered = [event for bad in peers for event in bad.events if isinstance(event, StreamEnded)]
        assert len(answered) == 10 - 4
        asyncio.run(ask(daemon))


async def test_a_peer_that_reads_nothing_is_not_answered_for_ever(tmp_path: Path) -> None:
    with limited(tmp_path) as daemon, peer(daemon) as bad:
        async with daemon.client() as client:
            job_id = await client.spawn(SpawnRequest(program="head", args=["-c", "50000000", "/dev/zero"]))
            async for _ in client.stream_log(job_id):
                pass
        before = resident_bytes(daemon.pid)
        bad.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
        bad.h2.increment_flow_control_window(2**31 - 2**16)
        bad.request(bad.open("StreamLog"), StreamLogRequest(job_id=job_id).SerializeToString())
        bad.send()
        for _ in range(50):
            bad.send(PING_FRAME * 100)
            await asyncio.sleep(0.02)
        wait_until(lambda: "answers are not read" in daemon.errors(), "the log does not tell")
        assert (resident_bytes(daemon.pid) - before) / MEGABYTE < 20
        await ask(daemon)


def reset_rapidly(bad: Peer) -> bool:
    try:
        for _ in range(100):
            bad.h2.reset_stream(bad.open("WhoAmI"))
    except ProtocolError:  # it was told to calm down
        return False
    return bad.send()


def send_many(frame: bytes) -> Callable[[Peer], bool]:
    return lambda bad: bad.send(frame * 500)


def send_empty_data(bad: Peer) -> bool:
    if bad.h2.highest_outbound_stream_id == 0:
        bad.open("WhoAmI")
    stream_id = bad.h2.highest_outbound_stream_id
    return bad.send((b"\0\0\0\0\0" + stream_id.to_bytes(4)) * 500)


@pytest.mark.parametrize(
    ("attack", "reading"),
    [
        pytest.param(reset_rapidly, True, id="streams that are reset"),
        pytest.param(send_many(PING_FRAME), True, id="PING"),
        pytest.param(send_many(PING_FRAME), False, id="PING, no answer to which is read"),
        pytest.param(send_many(SETTINGS_FRAME), True, id="SETTINGS"),
        pytest.param(send_many(SETTINGS_FRAME), False, id="SETTINGS, no answer to which is read"),
        pytest.param(send_many(WINDOW_FRAME), True, id="WINDOW_UPDATE"),
        pytest.param(send_many(PRIORITY_FRAME), True, id="PRIORITY"),
        pytest.param(send_empty_data, True, id="empty DATA"),
    ],
)
async def test_a_flood_ends_its_connection_and_harms_nobody(
    tmp_path: Path, attack: Callable[[Peer], bool], reading: bool
) -> None:
    with limited(tmp_path) as daemon, peer(daemon) as bad:
        await ask(daemon)
        before = resident_bytes(daemon.pid)

        def flood() -> int:
            times = 0
            until = time.monotonic() + 20
            while attack(bad) and time.monotonic() < until:
                times += 1
                if reading:
                    bad.socket.settimeout(0.0)
                    with contextlib.suppress(ssl.SSLWantReadError, ConnectionError):
                        bad.h2.receive_data(bad.socket.recv(1 << 16))
                    bad.socket.settimeout(10)
            return times

        flooding = asyncio.create_task(asyncio.to_thread(flood))
        slowest = 0.0
        while not flooding.done():
            slowest = max(slowest, await ask(daemon))
        grown = (resident_bytes(daemon.pid) - before) / MEGABYTE
        print(f"ended after {flooding.result()} pieces; others waited {slowest:.2f} s; {grown:.1f} MB more")
        assert slowest < SOON_SECONDS
        assert grown < 20
        wait_until(lambda: "limit=flood" in daemon.errors(), "the log does not tell")
        assert "Traceback" not in daemon.errors()
        await ask(daemon, USER)


async def test_a_flood_over_many_connections_is_one_flood(tmp_path: Path) -> None:
    with limited(tmp_path) as daemon:
        begun = time.monotonic()
        sent = 0
        for _ in range(20):
            with peer(daemon) as bad:
                while reset_rapidly(bad):
                    sent += 100
                    if bad.closed(0.05):
                        break
        await ask(daemon)
        served = 1000 + 33 * (time.monotonic() - begun)
        print(f"{sent} resets sent over 20 connections, at most {served:.0f} served")
        assert sent < 2 * served + 20 * 100
