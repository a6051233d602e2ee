"""Taking up what changes in a folder, whatever becomes of the folder."""

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.waiting import LIMIT_SECONDS
from workerd.access import following as following_module
from workerd.access.following import follow_folder
from workerd.engine.errors import WatchesExhausted
from workerd.engine.watcher import Change, Watcher

SOMEBODY = 65534


class Looks:
    """What was in a file at each look; None if it was not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "file"
        self.seen: list[str | None] = []
        self._looked = asyncio.Event()

    def look(self) -> bool:
        try:
            self.seen.append(self.file.read_text())
        except OSError:
            self.seen.append(None)
        self._looked.set()
        return True

    async def wait(self, wanted: str | None) -> None:
        """Wait until the last look saw something."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not self.seen or self.seen[-1] != wanted:
                self._looked.clear()
                await self._looked.wait()


def link(file: Path, target: str) -> bool:
    file.symlink_to(target)
    return True


@contextlib.asynccontextmanager
async def following(folder: Path) -> AsyncIterator[Looks]:
    looks = Looks(folder)
    task = asyncio.create_task(follow_folder(folder, looks.look))
    try:
        await looks.wait(looks.file.read_text() if looks.file.exists() else None)
        yield looks
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def test_a_file_that_is_written_replaced_linked_and_deleted_is_noticed(tmp_path: Path) -> None:
    async with following(tmp_path) as looks:
        changes: list[tuple[Callable[[], object], str | None]] = [
            (lambda: looks.file.write_text("written"), "written"),
            (lambda: (tmp_path / "new").write_text("replaced") and (tmp_path / "new").rename(looks.file), "replaced"),
            (looks.file.unlink, None),
            (lambda: (tmp_path / "target").write_text("linked") and link(looks.file, "target"), "linked"),
            (lambda: looks.file.rename(tmp_path / "away"), None),
        ]
        for change, wanted in changes:
            change()
            await looks.wait(wanted)


async def test_nobody_looks_when_nothing_changes(tmp_path: Path) -> None:
    async with following(tmp_path) as looks:
        looks.file.write_text("written")
        await looks.wait("written")
        await asyncio.sleep(0.1)  # nothing is to come of it
        count = len(looks.seen)
        assert count <= 3  # the file was made, and closed
        await asyncio.sleep(0.1)
        assert len(looks.seen) == count


async def test_a_file_is_not_looked_at_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("whole")
    async with following(tmp_path) as looks:
        with file.open("w") as half:
            half.write("half")
            half.flush()
            await asyncio.sleep(0.1)  # nothing is to come of it
            assert "half" not in looks.seen
            assert "" not in looks.seen
            half.write(" and half")
        await looks.wait("half and half")


async def test_a_folder_that_is_not_there_yet_is_followed_when_it_comes(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "between" / "folder"
    async with following(folder) as looks:
        folder.mkdir(parents=True)
        (folder / "file").write_text("there")
        await looks.wait("there")
        shutil.rmtree(tmp_path / "in")
        await looks.wait(None)
        folder.mkdir(parents=True)
        (folder / "file").write_text("again")
        await looks.wait("again")


async def test_a_folder_that_is_replaced_is_followed_in_its_place(tmp_path: Path) -> None:
    folder, new = tmp_path / "folder", tmp_path / "new"
    for each in (folder, new):
        each.mkdir()
    (new / "file").write_text("new")
    async with following(folder) as looks:
        folder.rename(tmp_path / "old")
        new.rename(folder)
        await looks.wait("new")
        (tmp_path / "old" / "file").write_text("old")
        (folder / "file").write_text("newer")
        await looks.wait("newer")
        assert "old" not in looks.seen


async def test_the_folder_behind_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    async with following(tmp_path / "link") as looks:
        (tmp_path / "real" / "file").write_text("behind")
        await looks.wait("behind")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else, and root again")
async def test_a_folder_that_is_closed_for_a_while_is_followed_on() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, SOMEBODY, SOMEBODY)
        folder = Path(directory, "folder")
        os.seteuid(SOMEBODY)
        try:
            folder.mkdir()
            (folder / "file").write_text("before")
            async with following(folder) as looks:
                folder.chmod(0)
                await looks.wait(None)
                folder.chmod(0o755)
                await looks.wait("before")
                (folder / "file").write_text("after")
                await looks.wait("after")
        finally:
            os.seteuid(0)


async def looked_at(folder: Path, look: Callable[[], bool], enough: asyncio.Event) -> None:
    """Follow a folder in which nothing changes until there was enough of it, and then for a while."""
    task = asyncio.create_task(follow_folder(folder, look))
    async with asyncio.timeout(LIMIT_SECONDS):
        await enough.wait()
    await asyncio.sleep(0.1)  # ten times as long as it would take
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_what_was_lacking_is_asked_for_again_though_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "_AGAIN_SECONDS", 0.01)
    looks, enough = 0, asyncio.Event()

    def look() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise MemoryError
        if looks == 4:
            enough.set()
        return looks == 4

    await looked_at(tmp_path, look, enough)
    assert looks == 4, "what is used is looked at without a change"


async def test_without_watches_changes_are_noticed_later_and_with_them_at_once_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "_AGAIN_SECONDS", 0.01)
    make, watch, looks, enough = Watcher.__init__, Watcher.watch, 0, asyncio.Event()
    lacking: list[Exception] = [OSError(errno.EMFILE, "no instance"), WatchesExhausted(), WatchesExhausted()]

    def make_late(self: Watcher, *arguments: Any) -> None:
        if lacking and isinstance(lacking[0], OSError):
            raise lacking.pop(0)
        make(self, *arguments)

    def watch_late(self: Watcher, path: Path, name: str | None = None) -> AbstractContextManager[Change]:
        if lacking:
            raise lacking.pop(0)
        return watch(self, path, name)

    def look() -> bool:
        nonlocal looks
        looks += 1
        if looks == 4:
            enough.set()
        return True

    monkeypatch.setattr(Watcher, "__init__", make_late)
    monkeypatch.setattr(Watcher, "watch", watch_late)
    with capture_logs() as told:
        await looked_at(tmp_path, look, enough)
    assert (lacking, looks) == ([], 4)
    late, again = "changes are noticed some seconds late", "changes are noticed at once again"
    assert [line["event"] for line in told] == [late, late, again]
