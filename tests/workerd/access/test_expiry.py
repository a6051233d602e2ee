"""Warnings of certificates that are about to expire: told, and not told all the time."""

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from pki.identity import EXPIRES_SOON, Identity
from pki.store import PkiFolder
from workerd.access import expiry
from workerd.access.expiry import CallerWarnings, remind

SOON = EXPIRES_SOON - timedelta(hours=1)
LATER = EXPIRES_SOON + timedelta(hours=1)


@pytest.fixture
def told() -> Iterator[list[Any]]:
    """What is logged."""
    with capture_logs() as told:
        yield told


def caller(left: timedelta, serial: str = "0A") -> Identity:
    """A user whose certificate holds for some time."""
    return Identity("id", "alice", "example", serial, datetime.now(UTC) + left)


@pytest.mark.parametrize(("left", "count"), [(SOON, 1), (LATER, 0)])
def test_caller_s_certificate_that_is_about_to_expire_is_told_once(
    told: list[Any], left: timedelta, count: int
) -> None:
    warnings = CallerWarnings()
    for _ in range(3):
        warnings.look(caller(left))
    assert len(told) == count
    assert all((line["user"], line["serial"], line["log_level"]) == ("alice", "0A", "warning") for line in told)


def test_caller_s_certificate_is_told_again_on_another_day(told: list[Any]) -> None:
    warnings = CallerWarnings()
    warnings.look(caller(SOON))
    warnings._day -= timedelta(days=1)
    warnings.look(caller(SOON))
    assert len(told) == 2


def test_warnings_of_a_day_are_bounded(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "_MOST_CALLERS", 3)
    warnings = CallerWarnings()
    for number in range(5):
        warnings.look(caller(SOON, f"0{number}"))
    assert len(told) == len(warnings._told) == 3


async def reminded(folder: PkiFolder, seconds: float) -> None:
    """Be reminded for some time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await remind(folder)


async def test_daemon_s_certificate_that_is_about_to_expire_is_told_every_day_until_it_is_renewed(
    told: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PkiFolder(tmp_path)
    folder.initialize()
    await reminded(folder, 0.1)
    assert told == []
    folder.renew("server", days=13)
    await reminded(folder, 0.1)
    assert [line["log_level"] for line in told] == ["warning"]
    assert "workerctl pki renew server" in told[0]["event"]
    monkeypatch.setattr(expiry, "_DAY_SECONDS", 0.01)
    await reminded(folder, 0.2)
    assert len(told) > 2
    told.clear()
    folder.renew("server")
    await reminded(folder, 0.1)
    assert told == []
    folder.server_certificate.unlink()
    await reminded(folder, 0.1)
    assert "server.crt" in told[0]["error"]
