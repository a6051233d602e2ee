"""An older list of revoked certificates pardons nobody, whatever the daemon went through since."""

import asyncio
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from pki.errors import ListOutdated, Missing
from pki.files import load_certificate
from pki.revocation import version_of
from pki.store import PkiFolder
from tests.waiting import eventually
from workerd.access import following
from workerd.access.credentials import Credentials
from workerd.access.newest_list import NewestList

REFUSED = "certificates were changed and cannot be used; those from before stay"


@pytest.fixture
def folder(tmp_path: Path) -> PkiFolder:
    """An authority with three users, and a list with two numbers already."""
    folder = PkiFolder(tmp_path / "pki")
    folder.initialize(users=["alice", "bob", "carol"])
    folder.revoke("alice")
    folder.revoke("alice")
    return folder


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "newest-crl.json"


def serve(folder: PkiFolder, memory: Path) -> Credentials:
    """Take up the certificates as a daemon does when it starts."""
    return Credentials(folder, NewestList(memory))


def older(folder: PkiFolder, aside: Path) -> None:
    """Revoke bob, and put the list from before back."""
    shutil.copy(folder.client_crl, aside)
    folder.revoke("bob")


def put_back(folder: PkiFolder, aside: Path) -> None:
    shutil.copy(aside, folder.client_crl)


def put_back_everything(folder: PkiFolder, aside: Path) -> None:
    """Restore the whole folder and revoke somebody else: the number is that of the newest, the list is not."""
    put_back(folder, aside)
    lines = folder.client_inventory.read_text().splitlines(keepends=True)
    folder.client_inventory.write_text("".join(lines[:-1]))
    folder.revoke("carol")


def take_away(folder: PkiFolder, aside: Path) -> None:
    del aside
    folder.client_crl.unlink()


SPOIL = pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (put_back, "it has number 2, and one with number 3 was in use"),
        (put_back_everything, "another one with its number 3 was in use"),
        (take_away, "it is not there any more, and had number 3"),
    ],
)


@SPOIL
def test_an_older_list_keeps_the_daemon_from_starting(
    folder: PkiFolder, memory: Path, tmp_path: Path, spoil: Callable[[PkiFolder, Path], None], said: str
) -> None:
    older(folder, tmp_path / "aside")
    serve(folder, memory)
    spoil(folder, tmp_path / "aside")
    with pytest.raises(ListOutdated, match=said) as raised:
        serve(folder, memory)
    assert str(folder.client_crl) in str(raised.value)
    assert f"remove {memory}" in str(raised.value)
    memory.unlink()
    serve(folder, memory)


@SPOIL
async def test_an_older_list_is_refused_while_the_daemon_runs_and_the_newest_stays(
    folder: PkiFolder,
    memory: Path,
    tmp_path: Path,
    spoil: Callable[[PkiFolder, Path], None],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    older(folder, tmp_path / "aside")
    credentials = serve(folder, memory)
    before = credentials.context.current
    with capture_logs() as told:
        task = asyncio.create_task(credentials.follow())
        await asyncio.sleep(0)
        spoil(folder, tmp_path / "aside")

        async def refused() -> bool:
            return any(line["event"] == REFUSED and said in line["error"] for line in told)

        await eventually(refused)
        assert credentials.context.current is before
        put_back(folder, tmp_path / "aside")
        folder.revoke("alice")
        folder.revoke("bob")

        async def taken_up() -> bool:
            return credentials.context.current is not before

        await eventually(taken_up)
        task.cancel()
        await asyncio.wait([task])


def test_the_next_list_of_an_authority_that_was_restored_is_taken(
    folder: PkiFolder, memory: Path, tmp_path: Path
) -> None:
    older(folder, tmp_path / "aside")
    serve(folder, memory)
    put_back(folder, tmp_path / "aside")
    folder.revoke("alice")
    serve(folder, memory)
    bob = load_certificate(folder.certificate("bob")).serial_number
    assert bob in folder.revoked()


def test_another_authority_begins_anew(folder: PkiFolder, memory: Path, tmp_path: Path) -> None:
    serve(folder, memory)
    other = PkiFolder(tmp_path / "other")
    other.initialize(users=["alice"])
    serve(other, memory)
    other.revoke("alice")
    serve(other, memory)
    assert sorted(each["number"] for each in json.loads(memory.read_bytes()).values()) == [1, 2]
    folder.client_crl.unlink()
    with pytest.raises(ListOutdated):
        serve(folder, memory)


def test_several_processes_remember_the_newest_that_one_of_them_saw(folder: PkiFolder, memory: Path) -> None:
    late, old = NewestList(memory), folder.crl()
    assert old is not None
    folder.revoke("bob")
    serve(folder, memory)
    newest = memory.read_bytes()
    late.keep(version_of(old, load_certificate(folder.client_ca)))
    assert memory.read_bytes() == newest


def test_whoever_may_read_the_state_directory_cannot_keep_a_list_from_being_remembered(
    folder: PkiFolder, memory: Path
) -> None:
    """To lock a folder, an account needs no more than to be able to read it (flock(2))."""
    newest = folder.crl()
    assert newest is not None
    reader = os.open(memory.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(reader, fcntl.LOCK_EX)
        NewestList(memory).keep(version_of(newest, load_certificate(folder.client_ca)))
    finally:
        os.close(reader)
    assert len(json.loads(memory.read_bytes())) == 1
    assert memory.with_suffix(".lock").stat().st_mode & 0o777 == 0o600


def test_a_memory_that_cannot_be_read_is_named(folder: PkiFolder, memory: Path) -> None:
    memory.write_bytes(b"nonsense")
    with pytest.raises(Missing, match=r"newest-crl\.json"):
        serve(folder, memory)


async def test_a_list_that_cannot_be_written_down_counts_and_is_written_down_later(
    folder: PkiFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    state = tmp_path / "state"
    state.mkdir()
    credentials = serve(folder, state / "newest-crl.json")
    with capture_logs() as told:
        task = asyncio.create_task(credentials.follow())
        await asyncio.sleep(0)
        before = credentials.context.current
        state.rename(tmp_path / "away")
        folder.revoke("bob")

        async def taken_up() -> bool:
            return credentials.context.current is not before

        await eventually(taken_up)
        await asyncio.sleep(0.1)  # ten times as long as until it tries again
        assert sum(line["event"].startswith("which list of revoked certificates") for line in told) == 1
        state.mkdir()

        async def written() -> bool:
            return (state / "newest-crl.json").exists()

        await eventually(written)
        task.cancel()
        await asyncio.wait([task])
    [kept] = json.loads((state / "newest-crl.json").read_bytes()).values()
    assert kept["number"] == 3
