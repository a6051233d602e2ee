"""Headers and calls that cost the peer little: the daemon keeps what it uses of them, and few at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from h2.errors import ErrorCodes
from worker_api.worker.v1 import SpawnRequest, StreamLogRequest

from tests.daemon import Daemon
from tests.holding import forget_peak, peak_bytes
from tests.hostile.attacker import (
    HEADERS,
    RST_STREAM,
    Connection,
    message,
    request_headers,
    window_update,
)
from tests.waiting import wait_until

MEGABYTE = 1 << 20
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MANY = [("z" + first + second, "v") for first in LETTERS for second in LETTERS][:425]  # within --max-header-bytes
CALLS = 900  # a connection may have 1000
WINDOW_SETTING, FRAME_SETTING = 4, 5  # RFC 9113 §6.5.2
WIDEST_WINDOW = (1 << 31) - 1
ENOUGH_BYTES = 20_000_000  # more than the kernel and the daemon take for a peer that does not read


@pytest.fixture
def limited_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose users may have 103 calls at a time, those that are refused included."""
    daemon = Daemon(tmp_path / "state", ("--max-calls-per-user", "1", "--max-streams-per-user", "2"))
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close()


def connect(daemon: Daemon, receive_bytes: int | None = None) -> Connection:
    return Connection(daemon.target(), daemon.target().tls(), receive_bytes)


async def spawn(daemon: Daemon, *arguments: str) -> str:
    """Start a program, and return the job's id."""
    async with daemon.client() as client:
        return await client.spawn(SpawnRequest(program=arguments[0], args=[*arguments[1:]], working_directory="/"))


async def print_much(daemon: Daemon) -> str:
    """Run a job whose log no peer's buffers hold, and return its id."""
    async with daemon.client() as client:
        job_id = await client.spawn(SpawnRequest(program="head", args=["-c", str(ENOUGH_BYTES), "/dev/zero"]))
        async for _ in client.stream_log(job_id):
            pass
    return job_id


def unsent_bytes(connection: Connection) -> int:
    """Return how many bytes the kernel holds for a peer that does not read them (proc_pid_net(5), tcp)."""
    ports = connection.socket.getpeername()[1], connection.socket.getsockname()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, queues = line.split()[1:5]
        if (int(local[9:], 16), int(remote[9:], 16)) == ports:
            return int(queues[:8], 16)
    return 0


def block(connection: Connection, job_id: str) -> None:
    """Read nothing of a log, until the daemon can send nothing more."""
    connection.open({WINDOW_SETTING: WIDEST_WINDOW, FRAME_SETTING: (1 << 24) - 1})
    connection.send(window_update(0, WIDEST_WINDOW - 65_535))
    connection.send(connection.request("StreamLog", message(bytes(StreamLogRequest(job_id=job_id)))))
    seen = [0] * 10

    def is_full() -> bool:
        seen.append(unsent_bytes(connection))
        return seen[-1] > 0 and len({*seen[-10:]}) == 1

    wait_until(is_full, "the daemon does not fill the connection")


def resets(connection: Connection) -> list[int]:
    """Read all that is there; return the codes of the streams that were reset."""
    connection.send(b"\0\0\x08\x06\0\0\0\0\0" + b"finished")
    codes = []
    for frame in connection.received():
        if frame.kind == RST_STREAM:
            codes.append(int.from_bytes(frame.payload))
        if frame.payload == b"finished":
            break
    return codes


def test_headers_of_calls_under_way_take_no_memory(daemon: Daemon) -> None:
    with connect(daemon) as bad:
        bad.open()
        forget_peak(daemon.pid)
        before = peak_bytes(daemon.pid)
        for _ in range(CALLS):
            assert bad.send(bad.headers(bad.take_stream(), request_headers("WhoAmI", *MANY)))
        assert bad.is_alive(b"finished")
        grown = (peak_bytes(daemon.pid) - before) / MEGABYTE
    print(f"{CALLS} calls took {grown:.0f} MiB")
    assert grown < 30


async def test_trailers_of_calls_under_way_take_no_memory(daemon: Daemon) -> None:
    request = message(bytes(StreamLogRequest(job_id=await spawn(daemon, "sleep", "1000"), follow=True)))
    with connect(daemon) as bad:
        bad.open()
        streams = [bad.take_stream() for _ in range(CALLS)]
        for stream_id in streams:
            assert bad.send(bad.headers(stream_id, request_headers("StreamLog")))
            assert bad.upload(stream_id, request, end=False)
        assert bad.is_alive(b"followed")
        forget_peak(daemon.pid)
        before = peak_bytes(daemon.pid)
        for stream_id in streams:
            assert bad.send(bad.headers(stream_id, MANY, "END_STREAM"))
        assert bad.is_alive(b"finished")
        grown = (peak_bytes(daemon.pid) - before) / MEGABYTE
    print(f"{CALLS} trailers took {grown:.0f} MiB")
    assert grown < 30


async def test_calls_whose_answers_are_not_read_take_no_memory(daemon: Daemon) -> None:
    """Each is refused, as nobody serves it, and its answer waits for the peer to read."""
    job_id = await print_much(daemon)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(connect(daemon, receive_bytes=4096)) for _ in range(2)]
        for bad in peers:
            block(bad, job_id)
        forget_peak(daemon.pid)
        before = peak_bytes(daemon.pid)
        for bad in peers:
            for _ in range(CALLS):
                assert bad.send(bad.headers(bad.take_stream(), request_headers("Nothing", *MANY), "END_STREAM"))
        codes = [code for bad in peers for code in resets(bad)]
        grown = (peak_bytes(daemon.pid) - before) / MEGABYTE
    print(f"{2 * CALLS} calls took {grown:.0f} MiB")
    assert grown < 20
    assert {*codes} == {ErrorCodes.ENHANCE_YOUR_CALM}


async def test_calls_of_a_user_that_are_not_over_are_only_so_many(limited_daemon: Daemon) -> None:
    """Those of all connections together count, also those that nobody serves; when they are over, there may be more."""
    job_id = await print_much(limited_daemon)
    with connect(limited_daemon, receive_bytes=4096) as one, connect(limited_daemon, receive_bytes=4096) as other:
        for bad in (one, other):
            block(bad, job_id)
        for bad in (one, other):
            for _ in range(80):
                assert bad.send(bad.headers(bad.take_stream(), request_headers("Nothing"), "END_STREAM"))
        wait_until(lambda: "streams are reset" in limited_daemon.errors(), "the log does not tell")
        assert [*resets(one), *resets(other)]
        for bad in (one, other):
            stream_id = bad.take_stream()
            assert bad.send(bad.headers(stream_id, request_headers("Nothing"), "END_STREAM"))
            assert any(frame.stream_id == stream_id and frame.kind == HEADERS for frame in bad.received())


def test_errors_that_differ_are_not_kept_for_later_answers(daemon: Daemon) -> None:
    """An answer's headers refer to the peer's table at 62 and above (RFC 7541 §2.3.3), so it shows what was added."""
    with connect(daemon) as bad:
        bad._decoder.max_allowed_table_size = 1 << 32
        bad.open({1: (1 << 32) - 1})
        for number in range(300):
            answer = bad.call(request_headers("Nothing" + str(number)), b"")
            assert answer.status is not None
        assert bad._decoder.header_table_size <= 4096
        names = [name for name, _ in bad._decoder.header_table.dynamic_entries]
    assert b"grpc-message" not in names
