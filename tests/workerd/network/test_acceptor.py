"""Connections that cannot be taken."""

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.waiting import LIMIT_SECONDS, eventually
from workerd.limits import DEFAULT_LIMITS, Meter
from workerd.listening import listen
from workerd.network.acceptor import Acceptor
from workerd.notices import Notices
from workerd.settings import Settings


async def test_without_memory_for_a_handshake_who_connects_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", fail)
    settings = Settings("127.0.0.1", 0, tmp_path, tmp_path / "pki", tmp_path / "policies")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with listen(settings) as listening, capture_logs() as told:
        acceptor = Acceptor(listening, context, lambda _: asyncio.Protocol(), Meter(DEFAULT_LIMITS), Notices())
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(b"x")
            async with asyncio.timeout(LIMIT_SECONDS):
                with contextlib.suppress(ConnectionResetError):  # what was sent was not read
                    assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(ConnectionResetError):
                await writer.wait_closed()
        acceptor.close()
    assert [line["event"] for line in told] == ["connections are closed: there is no memory left"]


async def test_handshakes_go_on_after_one_for_which_there_was_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shake_hands, attempts, has_begun = Acceptor._shake_hands, list[object](), asyncio.Event()

    def begin(acceptor: Acceptor, handshake: Any) -> Any:
        attempts.append(handshake)
        if len(attempts) == 1:
            raise MemoryError
        has_begun.set()
        return shake_hands(acceptor, handshake)

    async def has_failed() -> bool:
        return bool(attempts)

    monkeypatch.setattr(Acceptor, "_shake_hands", begin)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    settings = Settings("127.0.0.1", 0, tmp_path, tmp_path / "pki", tmp_path / "policies")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with listen(settings) as listening, contextlib.ExitStack() as stack:
        acceptor = Acceptor(listening, context, lambda _: asyncio.Protocol(), Meter(DEFAULT_LIMITS), Notices())
        stack.callback(acceptor.close)
        for wait in (eventually(has_failed), has_begun.wait()):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            stack.callback(writer.close)
            writer.write(b"x")
            async with asyncio.timeout(LIMIT_SECONDS):
                await wait
