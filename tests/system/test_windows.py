"""A log goes to a client in whatever portions that one takes (RFC 9113 §5.2): all of it, and its end."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpclib.const import Status
from h2.connection import H2Connection
from worker_api.worker.v1 import JobEnd, SpawnRequest, StreamLogRequest, StreamLogResponse

from tests.daemon import Daemon, running_daemon
from tests.hostile.attacker import DATA, HEADERS, Connection, data_frame, message, request_headers, window_update
from workerctl.client import Client

WINDOW = 4  # SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 §6.5.2)
VIEWER = "viewer"
LINES = b"".join(b"%d\n" % number for number in range(500))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("windows") / "state", "--roles.viewer", VIEWER) as daemon:
        daemon.pki.issue_client(VIEWER)
        yield daemon


async def run(client: Client, script: str) -> str:
    """Run a job to its end."""
    job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", script], working_directory="/"))
    async for _ in client.stream_log(job_id):
        pass
    return job_id


@pytest_asyncio.fixture
async def client(daemon: Daemon) -> AsyncIterator[Client]:
    async with daemon.client() as client:
        yield client


def follow(connection: Connection, job_id: str) -> int:
    """Ask for a log, and return the stream that it comes on."""
    stream_id = connection.take_stream()
    request = message(bytes(StreamLogRequest(job_id=job_id, follow=True)))
    connection.send(connection.headers(stream_id, request_headers("StreamLog")) + data_frame(stream_id, request))
    return stream_id


def first(connection: Connection, stream_id: int) -> bytes:
    """Read the first frame of data, and the headers before it, which the decoder must see."""
    for frame in connection.received():
        if frame.kind == HEADERS:
            connection._decoder.decode(frame.payload)
        if frame.kind == DATA and frame.stream_id == stream_id:
            return frame.payload
    raise AssertionError("the daemon closed the connection")


def read(connection: Connection, stream_id: int, window: int, grant: Callable[[int], int]) -> bytes:
    """Read a stream to its end, and open its window again as `grant` says of what is left of it."""
    data = b""
    if more := grant(window):
        connection.send(window_update(stream_id, more))
        window += more
    for frame in connection.received():
        if frame.kind == DATA:
            data += frame.payload
            window -= len(frame.payload)
            if more := grant(window):
                connection.send(window_update(stream_id, more))
                window += more
        if frame.stream_id == stream_id and frame.flags & 1:
            return data
    raise AssertionError(f"the daemon closed the connection after {len(data)} bytes")


def messages(data: bytes) -> Iterator[StreamLogResponse]:
    while data:
        size = int.from_bytes(data[1:5])
        yield StreamLogResponse.parse(data[5 : 5 + size])
        data = data[5 + size :]


@pytest.mark.parametrize(
    ("window", "grant"),
    [
        pytest.param(1, lambda left: 1 if left <= 0 else 0, id="a byte at a time"),
        pytest.param(0, lambda left: 8191 if left <= 0 else 0, id="nothing until it is asked for"),
    ],
)
async def test_every_byte_comes_and_the_end(
    daemon: Daemon, client: Client, window: int, grant: Callable[[int], int]
) -> None:
    job_id = await run(client, "seq 0 499")

    def take() -> bytes:
        with Connection(daemon.target(), daemon.target().tls()) as connection:
            connection.open({WINDOW: window})
            return read(connection, follow(connection, job_id), window, grant)

    *outputs, end = messages(await asyncio.to_thread(take))
    assert b"".join(each.output.data for each in outputs if each.output) == LINES
    assert end.end is not None and end.end.exited is not None


async def test_who_takes_nothing_does_not_keep_what_was_removed(daemon: Daemon, client: Client) -> None:
    job_id = await run(client, "head -c 10000000 /dev/zero")

    with await asyncio.to_thread(Connection, daemon.target(VIEWER), daemon.target(VIEWER).tls()) as connection:
        await asyncio.to_thread(connection.open)
        stream_id = follow(connection, job_id)
        assert await asyncio.to_thread(first, connection, stream_id)
        await client.remove(job_id)
        answer = await asyncio.to_thread(connection.answer, stream_id)
    assert answer.status == Status.NOT_FOUND.value
    held = [str(path.readlink()) for path in Path(f"/proc/{daemon.pid}/fd").iterdir() if path.is_symlink()]
    assert not [path for path in held if "deleted" in path]


async def test_who_reads_a_log_to_its_end_does_not_reset_the_call(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Very many calls that are reset are a flood."""
    resets = 0
    reset_stream = H2Connection.reset_stream

    def count(*arguments: Any, **options: Any) -> None:
        nonlocal resets
        resets += 1
        reset_stream(*arguments, **options)

    monkeypatch.setattr(H2Connection, "reset_stream", count)
    job_id = await run(client, "echo over")
    for _ in range(5):
        assert isinstance([event async for event in client.stream_log(job_id)][-1], JobEnd)
    assert resets == 0
