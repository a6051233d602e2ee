"""The policies in force, and what becomes of them when their files change."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.shortages import without_descriptors
from tests.waiting import LIMIT_SECONDS
from workerd.access import following
from workerd.access.policy import On, Resource
from workerd.access.rights import Rights
from workerd.engine.job import User
from workerd.errors import PolicyInvalid
from workerd.registry import load_routes, rights_of

OWNER, OTHER = User("11111111-1111-4111-8111-111111111111", "ann"), User("22222222-2222-4222-8222-222222222222", "bob")
JOB = Resource(On.JOB, "j", OWNER)
LET_BOB = 'permit (principal, action == Action::"stop", resource is Job) when { principal.name == "bob" };'


def make(folder: Path, **roles: tuple[str, ...]) -> Rights:
    """Take up the policies of a folder."""
    return Rights(folder, roles, rights_of(load_routes().values()))


def may_stop(rights: Rights) -> bool:
    """Tell whether the other user may stop the job."""
    return rights.decide(OTHER, "stop", JOB).permitted


@contextlib.asynccontextmanager
async def followed(rights: Rights) -> AsyncIterator[asyncio.Event]:
    """Follow the folder; give an event that is set when other policies are in force."""
    changed = asyncio.Event()
    with rights.tell(changed):
        task = asyncio.create_task(rights.follow())
        try:
            yield changed
        finally:
            task.cancel()
            await asyncio.wait([task])


async def wait(changed: asyncio.Event) -> None:
    """Wait until other policies are in force."""
    async with asyncio.timeout(LIMIT_SECONDS):
        await changed.wait()
    changed.clear()


async def wait_said(capsys: pytest.CaptureFixture[str], what: str) -> str:
    """Wait until the log says something, and give all that it has said since the last time."""
    said = ""
    async with asyncio.timeout(LIMIT_SECONDS):
        while what not in said:
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
    return said


def plain(capsys: pytest.CaptureFixture[str]) -> str:
    """Give what the log says, without colours, and with one blank where it has several."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    return re.sub(r"(?<=[^\[\]]) +(?=\w+=)", " ", said)


def test_roles_are_of_a_name_or_an_id_and_exact(tmp_path: Path) -> None:
    rights = make(tmp_path, admin=("ann", OTHER.id), viewer=("bob", "Ann"))
    assert rights.roles_of(OWNER) == {"admin"}
    assert rights.roles_of(OTHER) == {"admin", "viewer"}
    assert rights.roles_of(User("x", "ANN")) == frozenset()
    assert rights.roles_of(User("x", OTHER.id)) == frozenset(), "whoever is called as another's id is not that other"


def test_policies_that_cannot_be_used_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "mine.cedar").write_text("permit")
    with pytest.raises(PolicyInvalid, match=r"mine.cedar"):
        make(tmp_path)


async def test_changed_policies_count_from_then_on(tmp_path: Path) -> None:
    rights = make(tmp_path)
    file = tmp_path / "mine.cedar"
    async with followed(rights) as changed:
        assert not may_stop(rights)
        file.write_text(LET_BOB)
        await wait(changed)
        assert may_stop(rights)
        file.write_text(LET_BOB.replace("bob", "eve"))
        await wait(changed)
        assert not may_stop(rights)
        file.write_text(LET_BOB)
        await wait(changed)
        assert may_stop(rights)
        file.unlink()
        await wait(changed)
        assert not may_stop(rights)


async def test_a_folder_that_comes_later_counts(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    rights = make(folder)
    async with followed(rights) as changed:
        new = tmp_path / "new"
        new.mkdir()
        (new / "mine.cedar").write_text(LET_BOB)
        new.rename(folder)
        await wait(changed)
        assert may_stop(rights)


@pytest.mark.parametrize("bad", [b"permit (", b"// \xff", b"", b'permit (principal in Nobody::"x", action, resource);'])
async def test_what_is_bad_is_told_once_and_what_was_good_stays(
    tmp_path: Path, bad: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    file, aside = tmp_path / "mine.cedar", tmp_path / "aside"
    file.write_text(LET_BOB)
    rights = make(tmp_path)
    async with followed(rights) as changed:
        capsys.readouterr()
        aside.write_bytes(bad)
        aside.rename(file)
        said = await wait_said(capsys, "cannot be used")
        (tmp_path / "unrelated").touch()
        file.chmod(0o644)
        await asyncio.sleep(0.1)  # nothing is to come of it
        said += capsys.readouterr().out
        assert said.count("policies were changed and cannot be used; those from before stay") == 1
        assert "in force" not in said
        assert "mine.cedar" in said
        assert may_stop(rights)
        compiled: list[object] = []
        monkeypatch.setattr(rights, "_compile", compiled.append)
        await asyncio.sleep(0.1)  # ten times as long as what lacked would be tried again
        assert not compiled
        monkeypatch.undo()
        assert not changed.is_set()
        aside.write_text(LET_BOB.replace("stop", "remove"))
        aside.rename(file)
        await wait(changed)
        assert not may_stop(rights)


async def test_what_is_mended_without_a_change_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.cedar"
    rights = make(tmp_path)
    async with followed(rights) as changed:
        (tmp_path / "folder.cedar").mkdir()
        await wait_said(capsys, "cannot be used")
        (tmp_path / "folder.cedar").rmdir()
        await wait_said(capsys, "policies are as they were, and in force as before")
        assert not changed.is_set()
        file.write_text(LET_BOB)
        await wait(changed)


async def test_the_good_ones_put_back_are_no_news_to_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.cedar"
    file.write_text(LET_BOB)
    rights = make(tmp_path)
    async with followed(rights):
        file.write_text("permit (")
        await wait_said(capsys, "cannot be used")
        file.write_text(LET_BOB)
        await wait_said(capsys, "in force")
        assert may_stop(rights)


async def test_a_folder_that_goes_takes_nothing_that_it_forbids_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "mine.cedar").write_text('forbid (principal, action == Action::"stop", resource);')
    rights = make(folder)
    async with followed(rights) as changed:
        folder.rename(tmp_path / "aside")
        await wait_said(capsys, "the folder is not there any more")
        assert not rights.decide(OWNER, "stop", JOB).permitted
        (tmp_path / "aside" / "mine.cedar").write_text(LET_BOB)
        (tmp_path / "aside").rename(folder)
        await wait(changed)
        assert rights.decide(OWNER, "stop", JOB).permitted
        (folder / "mine.cedar").unlink()
        await wait(changed)
        assert not may_stop(rights)


async def test_a_file_that_is_just_being_made_is_no_empty_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `cp` and `>` make it: nothing is told until it is written, and what it is then."""
    file = tmp_path / "mine.cedar"
    rights = make(tmp_path)
    async with followed(rights) as changed:
        await asyncio.sleep(0.1)  # it is looked at for the first time, and followed from then on
        capsys.readouterr()
        for finished in (True, False):
            with file.open("w") as writing:
                await asyncio.sleep(0.1)  # the daemon sees an empty file
                (tmp_path / "unrelated").touch()
                await asyncio.sleep(0.1)
                assert capsys.readouterr().out == ""
                assert not may_stop(rights)
                if finished:
                    writing.write(LET_BOB)
            if finished:
                await wait(changed)
                assert may_stop(rights)
                file.unlink()
                await wait(changed)
                assert "error" not in capsys.readouterr().out
            else:
                assert "it is empty" in await wait_said(capsys, "cannot be used")


async def test_a_file_that_is_made_anew_counts_as_before_until_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.cedar"
    file.write_text(LET_BOB)
    rights = make(tmp_path)
    async with followed(rights) as changed:
        await asyncio.sleep(0.1)  # it is looked at for the first time, and followed from then on
        file.unlink()
        with file.open("w") as writing:  # before anybody could see that there was none
            await asyncio.sleep(0.1)
            assert may_stop(rights)
            assert not changed.is_set()
            writing.write(LET_BOB.replace("bob", "eve"))
        await wait(changed)
        assert not may_stop(rights)


async def test_a_file_that_goes_is_warned_of_with_what_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("default.cedar", "mine.cedar", "more.cedar"):
        (tmp_path / name).write_text(f"// {name}")
    rights = make(tmp_path)
    async with followed(rights) as changed:
        for gone, left in (
            ("mine.cedar", "['default.cedar', 'more.cedar']"),
            ("default.cedar", """["default.cedar (the daemon's own)", 'more.cedar']"""),
        ):
            capsys.readouterr()
            (tmp_path / gone).unlink()
            await wait(changed)
            said = plain(capsys)
            assert "[warning  ] policies were changed and are in force from now on, without some files" in said
            assert f"gone=['{gone}']" in said and f"files={left}" in said
        (tmp_path / "more.cedar").write_text("// other")
        await wait(changed)
        assert "warning" not in plain(capsys)


async def test_what_is_in_force_is_told_and_roles_that_nobody_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.cedar").write_text('permit (principal in Role::"oprator", action, resource);')
    rights = make(tmp_path, operator=("bob",))
    said = plain(capsys)
    assert (
        """files=["default.cedar (the daemon's own)", 'mine.cedar']""" in said and "roles={'operator': ['bob']}" in said
    )
    assert "[warning  ] policies name roles that the configuration gives nobody roles=['oprator']\n" in said
    async with followed(rights) as changed:
        (tmp_path / "mine.cedar").write_text('permit (principal in Role::"operator", action, resource);')
        await wait(changed)
        assert "gives nobody" not in plain(capsys)
        (tmp_path / "mine.cedar").write_text('permit (principal in Role::"auditor", action, resource);')
        await wait(changed)
        said = plain(capsys)
        assert "gives nobody" in said
        assert "[warning  ] the configuration gives roles that no policy names roles=['operator']\n" in said


NO_JOB_RUNS = "policies permit spawn to everybody, but not run-as on the default account"


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ('permit (principal, action == Action::"spawn", resource);', True),
        ('permit (principal, action in [Action::"spawn", Action::"run-as"], resource);', False),
        ('permit (principal in Role::"admin", action == Action::"spawn", resource);', False),
    ],
)
def test_policies_that_let_spawn_and_no_job_run_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, is_told: bool
) -> None:
    """Such as those from before every spawn required run-as."""
    (tmp_path / "default.cedar").write_text(text)
    make(tmp_path, admin=("ann",))
    assert (NO_JOB_RUNS in plain(capsys)) is is_told


def test_a_file_is_named_by_its_path_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    for text in ("", "permit (", '@id("x") permit (principal, action == Action::"fly", resource);'):
        (tmp_path / "mine.cedar").write_text(text)
        with pytest.raises(PolicyInvalid) as refused:
            make(tmp_path)
        assert str(refused.value).startswith(f"the policies in {tmp_path / 'mine.cedar'} cannot be used: ")


async def test_what_cannot_be_read_for_want_of_descriptors_counts_when_there_are_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_AGAIN_SECONDS", 0.01)
    (tmp_path / "mine.cedar").write_text(LET_BOB)
    rights = make(tmp_path)
    async with followed(rights) as changed:
        capsys.readouterr()
        await asyncio.sleep(0.05)  # it looks and waits
        (tmp_path / "mine.cedar").unlink()
        (tmp_path / "other.cedar").write_text("// nothing")
        with without_descriptors():
            await asyncio.sleep(0.2)  # it looks anew twenty times
            assert may_stop(rights)
        await wait(changed)
        assert not may_stop(rights)
    said = capsys.readouterr().out
    assert (said.count("those from before stay"), said.count("Too many open files")) == (1, 1)


async def test_whoever_goes_on_by_old_policies_is_told_whatever_fails_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError

    rights = make(tmp_path)
    monkeypatch.setattr(rights, "_warn", fail)
    async with followed(rights) as changed:
        (tmp_path / "mine.cedar").write_text(LET_BOB)
        await wait(changed)
        assert may_stop(rights)


async def test_a_folder_among_the_policies_is_told_once_and_holds_no_descriptor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rights = make(tmp_path)
    async with followed(rights):
        capsys.readouterr()
        (tmp_path / "folder.cedar").mkdir()
        said = await wait_said(capsys, "cannot be used")
        before = len(os.listdir("/proc/self/fd"))
        for number in range(20):
            (tmp_path / f"{number}").touch()
            await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) == before
    said += capsys.readouterr().out
    assert said.count("those from before stay") == 1
    assert "Is a directory" in said
