"""The users that a daemon has seen."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workerd.access.users import Users
from workerd.engine.job import Share, User
from workerd.errors import UserUnknown

ANN, BOB = "1aaaaaaa-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def test_who_has_been_here_is_found_by_name_and_by_id_in_any_process(tmp_path: Path) -> None:
    Users(tmp_path / "users").note(User(ANN, "ann"))
    again = Users(tmp_path / "users")
    assert again.find("ann") == again.find(ANN) == User(ANN, "ann")


def test_a_name_of_nobody_is_unknown_and_an_id_is_not(tmp_path: Path) -> None:
    users = Users(tmp_path / "users")
    assert users.find(ANN) == User(ANN, ANN)
    for name in ("ann", "", ".", "..", "../users", ANN.upper(), f"{{{ANN}}}", ANN[:-1], f"/{ANN}", f".{ANN}.1"):
        with pytest.raises(UserUnknown, match="names no user that has been here yet"):
            users.find(name)


def test_a_name_of_several_is_refused_and_their_ids_are_told(tmp_path: Path) -> None:
    users = Users(tmp_path / "users")
    users.note(User(ANN, "ann"))
    users.note(User(BOB, "ann"))
    with pytest.raises(UserUnknown, match=f"names several users \\({ANN}, {BOB}\\)"):
        users.find("ann")


def test_a_renamed_user_goes_by_the_new_name_alone(tmp_path: Path) -> None:
    users = Users(tmp_path / "users")
    users.note(User(ANN, "ann"))
    users.note(User(ANN, "anna"))
    assert users.find("anna") == users.find(ANN) == User(ANN, "anna")
    with pytest.raises(UserUnknown):
        users.find("ann")
    users.note(User(BOB, "ann"))
    assert users.find("ann").id == BOB


@pytest.mark.parametrize("name", ["a\r\nb", "Jürgen", "🦆", " ann ", BOB])
def test_a_name_is_kept_as_it_is(tmp_path: Path, name: str) -> None:
    Users(tmp_path / "users").note(User(ANN, name))
    users = Users(tmp_path / "users")
    assert users.find(ANN) == User(ANN, name)
    assert users.find(name).id == (BOB if name == BOB else ANN)  # an id is never taken for a name


def test_what_cannot_be_kept_is_told_and_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "users").touch()
    users = Users(tmp_path / "users")
    users.note(User(ANN, "ann"))
    assert "a user cannot be found by their name yet" in capsys.readouterr().out
    (tmp_path / "users").unlink()
    users.note(User(ANN, "ann"))
    assert users.find("ann").id == ANN
    assert (tmp_path / "users").stat().st_mode & 0o777 == 0o700


def test_what_else_is_in_the_folder_is_nobody(tmp_path: Path) -> None:
    users = Users(tmp_path / "users")
    users.note(User(ANN, "ann"))
    (tmp_path / "users" / f".{BOB}.123").write_text("ann")
    (tmp_path / "users" / "README").write_text("ann")
    (tmp_path / "users" / BOB).write_bytes(b"\xff")
    assert users.find("ann").id == ANN
    assert users.find(BOB).id == BOB


def test_users_whom_another_process_notes_are_found_and_renamed(tmp_path: Path) -> None:
    ours, theirs = Users(tmp_path / "users"), Users(tmp_path / "users")
    theirs.note(User(ANN, "ann"))
    assert ours.find("ann").id == ANN
    theirs.note(User(ANN, "anna"))
    theirs.note(User(BOB, "ann"))
    assert (ours.find("anna").id, ours.find("ann").id) == (ANN, BOB)
    (tmp_path / "users" / ANN).unlink()
    with pytest.raises(UserUnknown):
        ours.find("anna")


def test_a_name_is_looked_up_without_reading_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = Users(tmp_path / "users")
    users.note(User(ANN, "ann"))
    os.utime(tmp_path / "users", (1, 1))
    assert users.find("ann").id == ANN

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"{arguments} is read")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert users.find("ann").id == ANN
    with pytest.raises(UserUnknown):
        users.find("bob")


def test_threads_take_up_what_has_changed_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = Users(tmp_path / "users")
    Users(tmp_path / "users").note(User(ANN, "ann"))
    read_bytes, both, together = Path.read_bytes, threading.Barrier(2), list[Path]()

    def read(path: Path) -> bytes:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
            together.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with ThreadPoolExecutor(2) as threads:
        assert [*threads.map(users.find, ["ann", "ann"])] == [User(ANN, "ann")] * 2
    assert together == []


@pytest.mark.parametrize("names", [("ann", "bob"), ("ann", "ann"), ("bob", "ann"), ("ann", "other"), ("", "bob")])
def test_a_user_is_granted_what_their_bound_shares_give(tmp_path: Path, names: tuple[str, str]) -> None:
    users = Users(tmp_path / "users")
    for user_id, name in zip((ANN, BOB), names, strict=True):
        users.note(User(user_id, name))
    shares = (
        Share(User("", "ann"), ("status", "stop")),
        Share(User("", "bob"), ("stop",)),
        Share(User(BOB, "robert"), ("remove",)),
        Share(User("", "nobody"), ("status",)),
    )
    bound = {(share.user.id, right) for share in users.bind(shares) for right in share.rights}
    for asked in ({ANN}, {BOB}, {ANN, BOB}, set[str]()):
        assert users.granted(shares, asked) == {(user_id, right) for user_id, right in bound if user_id in asked}


def test_the_folder_is_looked_at_once_for_any_number_of_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users, looks, stat = Users(tmp_path / "users"), list[object](), os.stat
    users.note(User(ANN, "ann"))
    os.utime(tmp_path / "users", (1, 1))
    shares = tuple(Share(User("", f"stranger-{number}"), ("status",)) for number in range(100))

    def look(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        looks.append(path)
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr("workerd.access.users.os.stat", look)
    assert users.bind(shares) == shares
    assert users.granted(shares, {ANN}) == frozenset()
    assert users.renamed([User(ANN, "anna"), *(share.user for share in shares)])[0] == User(ANN, "ann")
    assert looks == [tmp_path / "users"] * 3
