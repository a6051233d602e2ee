"""The gate: calls and clients that end at the same time, and whom calls are made for."""

import asyncio
import gc
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from pki.identity import Identity
from workerd.access.caller import Caller
from workerd.access.recorder import Recorder
from workerd.access.rights import Rights
from workerd.access.users import Users
from workerd.engine.job import User
from workerd.errors import ShuttingDown, UserUnknown, to_grpc
from workerd.gate import Gate
from workerd.registry import load_routes, rights_of

NOTHING: Any = None
ANN, EVE = "1aaaaaaa-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


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


async def test_nobody_acts_for_a_user_who_comes_after_the_decision(tmp_path: Path) -> None:
    """The decision was about a user without an id, for whom a policy about that user does not count."""
    routes = load_routes()
    rights = Rights(tmp_path / "policies", {"admin": ("ann",)}, rights_of(routes.values()))

    def record(event: Mapping[str, Any], *, urgent: bool = False) -> None:
        assert (event["action"], event["verdict"], urgent) == ("impersonate", "permit", False)
        Users(tmp_path / "users").note(User(EVE, "eve"))  # as another process does

    daemon, recorder = cast("Any", SimpleNamespace(users=Users(tmp_path / "users"))), Recorder(record)
    gate = Gate(daemon, routes, NOTHING, rights, recorder, NOTHING, NOTHING)
    ann = Identity(ANN, "ann", "example.org", "01", datetime.max.replace(tzinfo=UTC))
    caller = Caller(ann, None, "somewhere", "/Status", rights, recorder)
    stream = cast("Any", SimpleNamespace(metadata=SimpleNamespace(getall=lambda *_: ["eve"])))
    with pytest.raises(UserUnknown, match="'eve' names no user"):
        gate._act(caller, stream)
    assert gate._daemon.users.find("eve").id == EVE
