"""Files of a state directory that another account may have put there."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from workerd.access.users import Users
from workerd.engine.database import Database
from workerd.engine.files import private, replacing
from workerd.engine.hold import holding
from workerd.engine.job import User

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another account")
SOMEBODY = 23461


def open_database(path: Path) -> None:
    Database(path.with_suffix(".sqlite"), "CREATE TABLE t (a); PRAGMA user_version = 1", (1,))


def replace(path: Path) -> None:
    with replacing(path.with_suffix("")) as file:
        file.write(b"ours")


def empty(path: Path) -> None:
    os.close(private(str(path), os.O_WRONLY | os.O_TRUNC))


@as_root
@pytest.mark.parametrize(("name", "use"), [("catalog.lock", open_database), ("secret.new", replace), ("file", empty)])
def test_a_file_of_another_account_is_neither_written_nor_locked(
    tmp_path: Path, name: str, use: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    path.write_text("theirs")
    os.chown(path, SOMEBODY, -1)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PermissionError, match=f"it belongs to uid {SOMEBODY}: remove it") as refused:
            use(path)
    assert refused.value.filename == str(path)
    assert path.read_text() == "theirs"


@as_root
async def test_a_state_directory_is_not_held_by_a_lock_file_of_another_account(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    os.chown(tmp_path / "lock", SOMEBODY, -1)
    with pytest.raises(PermissionError, match=f"it belongs to uid {SOMEBODY}"):
        async with holding(tmp_path / "lock"):
            pass


@as_root
def test_the_name_of_a_user_that_another_account_wrote_is_not_believed(tmp_path: Path) -> None:
    """Who shares a job by name would share it with that account's user."""
    alice = User("0d6a3d2c-5a3f-4f64-9a40-6d0c1f1f7a11", "alice")
    Users(tmp_path).note(alice)
    assert Users(tmp_path).meant("alice") == alice
    os.chown(tmp_path / alice.id, SOMEBODY, -1)
    assert Users(tmp_path).meant("alice") == User("", "alice")


def test_a_pipe_in_the_place_of_a_private_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PermissionError, match="not a regular file"):
        private(str(tmp_path / "pipe"), os.O_RDWR)
