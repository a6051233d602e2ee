"""Clients that send more than their request: the calls are refused and reset, and the excess is not kept."""

import asyncio
import contextlib
import ssl
import time

import pytest
from grpclib.const import Status
from h2.errors import ErrorCodes
from h2.events import StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from worker_api.worker.v1 import SpawnRequest, StreamLogRequest

from tests.daemon import Daemon
from tests.holding import forget_peak, peak_bytes
from tests.raw import Peer, peer, status

SLEEP = SpawnRequest(program="sleep", args=["1000"], working_directory="/")
MEGABYTE = 1 << 20
FIRST_WINDOW_BYTES, WIDEST_WINDOW_BYTES = 65_535, 262_144
FRAME_BYTES = 1 << 14
SENDING_SECONDS = 60


async def follow_request(daemon: Daemon) -> bytes:
    """Start a job, and return the request to follow it."""
    async with daemon.client() as client:
        return StreamLogRequest(job_id=await client.spawn(SLEEP), follow=True).SerializeToString()


def take_in(bad: Peer) -> bool:
    """Read what has come; return whether the connection is still there."""
    bad.socket.settimeout(0.0)
    try:
        while data := bad.socket.recv(1 << 16):
            bad.h2.receive_data(data)
    except (ssl.SSLWantReadError, BlockingIOError):
        return True
    except (OSError, ProtocolError):
        return False
    finally:
        bad.socket.settimeout(10.0)
    return False


def send_all_that_is_let(peers: dict[Peer, list[int]]) -> int:
    """Send on each stream as much as the daemon's windows let through, until nothing more goes; return the bytes."""
    until, sent, progress_at = time.monotonic() + SENDING_SECONDS, 0, time.monotonic()
    while peers and time.monotonic() < until and time.monotonic() - progress_at < 2.0:
        for bad, streams in [*peers.items()]:
            for stream_id in [*streams]:
                try:
                    size = min(bad.h2.local_flow_control_window(stream_id), FRAME_BYTES)
                    if size > 0:
                        bad.h2.send_data(stream_id, b"x" * size)
                        sent, progress_at = sent + size, time.monotonic()
                except ProtocolError:  # it was reset
                    streams.remove(stream_id)
            if not (bad.send() and take_in(bad)):
                del peers[bad]
    return sent


@pytest.mark.parametrize(("connections", "streams"), [(40, 1), (10, 100)], ids=["40 streams", "1,000 streams"])
async def test_what_is_sent_after_a_request_takes_no_memory(daemon: Daemon, connections: int, streams: int) -> None:
    request = await follow_request(daemon)
    forget_peak(daemon.pid)
    before = peak_bytes(daemon.pid)

    def attack() -> int:
        with contextlib.ExitStack() as stack:
            peers: dict[Peer, list[int]] = {}
            for _ in range(connections):
                bad = stack.enter_context(peer(daemon))
                bad.read(seconds=0.05)  # the daemon's windows
                peers[bad] = [bad.open("StreamLog") for _ in range(streams)]
                for stream_id in peers[bad]:
                    bad.request(stream_id, request, end=False)
                bad.send()
            return send_all_that_is_let(peers)

    sent = await asyncio.to_thread(attack)
    grown = peak_bytes(daemon.pid) - before
    print(f"{connections * streams} streams sent {sent / MEGABYTE:.0f} MiB, which took {grown / MEGABYTE:.0f} MiB")
    assert grown < (16 + connections * streams * 0.04) * MEGABYTE  # of which the streams themselves take most
    async with daemon.client() as client:
        assert (await client.whoami()).user is not None


async def test_a_call_with_more_than_one_request_is_unimplemented_and_reset(daemon: Daemon) -> None:
    """As doc/statuscodes.md of gRPC has it ("Request cardinality violation"), and RFC 9113 §8.1."""
    request = await follow_request(daemon)
    with peer(daemon) as bad:
        stream_id = bad.open("StreamLog")
        bad.request(stream_id, request, end=False)
        bad.h2.send_data(stream_id, b"\0")
        bad.send()
        reset = bad.read(StreamReset)
        assert isinstance(reset, StreamReset)
        assert (reset.stream_id, reset.error_code) == (stream_id, ErrorCodes.NO_ERROR)
        assert status(bad.events) is Status.UNIMPLEMENTED


async def test_what_is_sent_after_the_end_of_a_call_s_stream_resets_it(daemon: Daemon) -> None:
    request = await follow_request(daemon)
    with peer(daemon) as bad:
        stream_id = bad.open("StreamLog")
        bad.request(stream_id, request)
        bad.send(len(b"more").to_bytes(3) + b"\0\0" + stream_id.to_bytes(4) + b"more")
        reset = bad.read(StreamReset)
        assert isinstance(reset, StreamReset)
        assert (reset.stream_id, reset.error_code) == (stream_id, ErrorCodes.STREAM_CLOSED)


def test_the_window_of_a_stream_is_small_until_its_request_is_known(daemon: Daemon) -> None:
    with peer(daemon) as good:
        good.read(seconds=0.2)
        stream_id = good.open("Spawn")
        good.send()
        good.read(seconds=0.2)
        assert good.h2.local_flow_control_window(stream_id) == FIRST_WINDOW_BYTES
        size = 1_000_000
        good.h2.send_data(stream_id, b"\0" + size.to_bytes(4))
        good.send()
        good.read(seconds=0.2)
        assert good.h2.local_flow_control_window(stream_id) > WIDEST_WINDOW_BYTES - 10
        while size:
            if piece := min(size, good.h2.local_flow_control_window(stream_id), FRAME_BYTES):
                good.h2.send_data(stream_id, b"x" * piece, end_stream=piece == size)
                size -= piece
                good.send()
            else:
                assert take_in(good)
        assert isinstance(good.read(StreamEnded), StreamEnded)
        assert status(good.events) is Status.INVALID_ARGUMENT  # it was read, and is no message


def test_the_window_of_a_connection_bounds_what_many_streams_may_send(daemon: Daemon) -> None:
    with peer(daemon) as bad:
        bad.read(seconds=0.2)
        assert bad.h2.outbound_flow_control_window == WIDEST_WINDOW_BYTES
