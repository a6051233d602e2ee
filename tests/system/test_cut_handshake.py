"""A connection that dies where a refusal would end it, to a daemon that served the client before."""

import asyncio
import contextlib
import os
from pathlib import Path

from worker_api.worker.v1 import SpawnRequest

from tests.daemon import Daemon
from workerctl.client import Client
from workerctl.events import Output


class Cutter:
    """A wire to a daemon that is cut: the first connection on demand, the second as the client ends its handshake.

    The second dies where a refused certificate ends a connection, after the client's handshake, but without an alert.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._port = daemon.port
        self._first: asyncio.StreamWriter | None = None
        self.connections = 0

    def cut(self) -> None:
        """Cut the first connection."""
        assert self._first is not None
        self._first.transport.abort()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        number = self.connections
        if number == 1:
            self._first = writer
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        if number == 2:
            ours.write(await reader.read(65536))
            writer.write(await theirs.read(65536))
            await reader.read(65536)
        else:
            with contextlib.suppress(ConnectionError):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass_on(reader, ours))
                    tasks.create_task(self._pass_on(theirs, writer))
        for end in (writer, ours):
            end.transport.abort()

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()


async def test_follower_that_was_served_once_takes_no_cut_for_a_refusal(shared_daemon: Daemon, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    cutter = Cutter(shared_daemon)
    said: list[bytes] = []
    async with await asyncio.start_server(cutter.connect, "127.0.0.1", 0) as server:
        endpoint = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        async with shared_daemon.client() as direct, Client(shared_daemon.target(endpoint=endpoint)) as client:
            job_id = await direct.spawn(
                SpawnRequest(program="sh", args=["-c", f"echo before; read line <{gate}; echo after"])
            )
            async with contextlib.aclosing(client.stream_log(job_id)) as events:
                async for event in events:
                    if not isinstance(event, Output):
                        continue
                    said.append(event.data)
                    if event.data == b"before\n":
                        cutter.cut()
                        await asyncio.to_thread(gate.write_text, "go\n")
    assert (said, cutter.connections) == ([b"before\n", b"after\n"], 3)
