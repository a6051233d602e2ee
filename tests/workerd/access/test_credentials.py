"""Certificates that are taken up while it lasts that they cannot be read."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pki.store import PkiFolder
from tests.shortages import without_descriptors
from tests.waiting import eventually
from workerd.access import following
from workerd.access.credentials import Credentials
from workerd.access.newest_list import NewestList

REFUSED = "certificates were changed and cannot be used; those from before stay"


async def test_what_cannot_be_read_for_want_of_descriptors_is_taken_up_when_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    folder = PkiFolder(tmp_path)
    folder.initialize(users=["alice"])
    credentials = Credentials(folder, NewestList(tmp_path / "newest-crl.json"))
    before = credentials.context.current
    with capture_logs() as told:
        task = asyncio.create_task(credentials.follow())
        await asyncio.sleep(0.05)  # it looks and waits
        folder.revoke("alice")
        with without_descriptors():
            await asyncio.sleep(0.2)  # it looks anew twenty times
            assert [(line["event"], os.strerror(errno.EMFILE) in line["error"]) for line in told] == [(REFUSED, True)]
            assert credentials.context.current is before

        async def taken_up() -> bool:
            return credentials.context.current is not before

        await eventually(taken_up)
        assert (told[1]["changed"], told[1]["revoked"]) == (["client-ca.crl"], 1)
        now = credentials.context.current
        await asyncio.sleep(0.1)  # ten times as long as what lacked would be tried again
        assert credentials.context.current is now
        assert len(told) == 2
        task.cancel()
        await asyncio.wait([task])


async def test_what_fails_in_the_middle_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    folder = PkiFolder(tmp_path)
    folder.initialize(users=["alice"])
    credentials = Credentials(folder, NewestList(tmp_path / "newest-crl.json"))
    use, used = credentials._use, []

    def fail_once(loaded: object) -> None:
        used.append(loaded)
        if len(used) == 1:
            raise MemoryError
        use(loaded)  # type: ignore[arg-type]

    monkeypatch.setattr(credentials, "_use", fail_once)
    task = asyncio.create_task(credentials.follow())
    await asyncio.sleep(0.05)
    folder.revoke("alice")

    async def taken_up() -> bool:
        return bool(credentials._loaded.revoked)

    await eventually(taken_up)
    task.cancel()
    await asyncio.wait([task])


async def test_what_becomes_as_it_was_is_told(tmp_path: Path) -> None:
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize(users=["alice"])
    credentials = Credentials(folder, NewestList(tmp_path / "newest-crl.json"))
    with capture_logs() as told:

        async def refused() -> bool:
            return [line["event"] for line in told] == [REFUSED]

        async def mended() -> bool:
            return [line["event"] for line in told[1:]] == ["certificates are as they were, and in use as before"]

        task = asyncio.create_task(credentials.follow())
        await asyncio.sleep(0.05)  # it looks and waits
        folder.path.rename(tmp_path / "away")
        await eventually(refused)
        (tmp_path / "away").rename(folder.path)
        await eventually(mended)
        task.cancel()
        await asyncio.wait([task])
