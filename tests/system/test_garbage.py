"""Calls leave nothing to the garbage collector, which stops the whole daemon while it works."""

import asyncio
import gc
from pathlib import Path

from worker_api.worker.v1 import ListRequest, SpawnRequest, StatusRequest

from tests.daemon import daemon_in_this_process
from tests.holding import settle, tasks_by_name
from tests.hostile.attacker import Connection, Headers, data_frame, message, request_headers
from tests.hostile.witness import when_quiet
from workerctl.client import Client
from workerctl.target import Target
from workerd.engine.job import Job

_CALLS = 50
_MOST_LEFT = 150  # by one connection
_UNKNOWN_JOB = "1aaaaaaa-1111-4111-8111-111111111111"


def _call(target: Target, requests: list[tuple[Headers, bytes]]) -> None:
    """Make each call many times over one connection."""
    with Connection(target, target.tls()) as connection:
        connection.open()
        for headers, data in requests * _CALLS:
            connection.call(headers, message(data))


async def test_neither_answers_nor_refusals_leave_cycles(tmp_path: Path) -> None:
    async with daemon_in_this_process(tmp_path / "state") as target, asyncio.timeout(60):
        async with Client(target) as client:
            job_id = await client.spawn(SpawnRequest(program="true"))
        requests = [
            (request_headers("Status"), bytes(StatusRequest(job_id=job_id))),
            (request_headers("List"), bytes(ListRequest())),
            (request_headers("Status"), bytes(StatusRequest(job_id=_UNKNOWN_JOB))),
            (request_headers("WhoAmI", ("workerd-username", "bob")), b""),
            (request_headers("WhoAmI"), b"\xff"),
            (request_headers("Unknown"), b""),
        ]
        await asyncio.to_thread(_call, target, requests)
        before = await when_quiet(tasks_by_name)
        gc.collect()
        gc.disable()
        try:
            await asyncio.to_thread(_call, target, requests)
            await settle(tasks_by_name, before)
            assert gc.collect() <= _MOST_LEFT
        finally:
            gc.enable()


def _leave(target: Target, request: tuple[Headers, bytes]) -> None:
    """Make calls over one connection, and close it before they are answered."""
    headers, data = request
    with Connection(target, target.tls()) as connection:
        connection.open()
        for _ in range(_CALLS):
            stream_id = connection.take_stream()
            connection.send(connection.headers(stream_id, headers) + data_frame(stream_id, message(data)))
        connection.is_alive(b"workerd?")  # the calls have been taken


async def test_calls_whose_client_has_gone_leave_no_job_behind(tmp_path: Path) -> None:
    """A job may be large, and what is left in cycles stays until the collector looks through old objects."""
    async with daemon_in_this_process(tmp_path / "state") as target, asyncio.timeout(60):
        async with Client(target) as client:
            job_id = await client.spawn(SpawnRequest(program="true", args=["x"] * 100_000))
        request = request_headers("Status"), bytes(StatusRequest(job_id=job_id))
        await asyncio.to_thread(_leave, target, request)
        before = await when_quiet(tasks_by_name)
        gc.collect()
        gc.disable()
        try:
            await asyncio.to_thread(_leave, target, request)
            await settle(tasks_by_name, before)
            assert [found for found in gc.get_objects() if isinstance(found, Job)] == []
        finally:
            gc.enable()
