"""What the gate does when a call and its client come to their end at the same time."""

import asyncio
import gc
from typing import Any, cast

import pytest
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from workerd.errors import ShuttingDown, to_grpc
from workerd.gate import Gate
from workerd.registry import load_routes

NOTHING: Any = None


async def test_a_call_that_fails_just_when_its_client_goes_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    ended = asyncio.Event()

    async def fail(*_: object) -> None:
        ended.set()
        raise to_grpc(ShuttingDown())

    monkeypatch.setattr(Gate, "_serve", fail)
    gate = Gate(NOTHING, load_routes(), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    method = gate.__mapping__()["/worker.v1.WorkerService/Status"]
    answering = asyncio.create_task(method.func(cast("Stream[Any, Any]", None)))
    await ended.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    del answering
    await asyncio.sleep(0)  # the gate forgets the call
    gc.collect()
    assert complaints == []


async def test_a_call_that_fails_tells_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise to_grpc(ShuttingDown())

    monkeypatch.setattr(Gate, "_serve", fail)
    gate = Gate(NOTHING, load_routes(), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING)
    with pytest.raises(GRPCError):
        await gate.__mapping__()["/worker.v1.WorkerService/Status"].func(cast("Stream[Any, Any]", None))
