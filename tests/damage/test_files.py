"""Copies are exact, and damage is done where it is said to be."""

import os
from pathlib import Path
from random import Random

import pytest

from tests.damage.files import Victim, copy_state, damage, find_victims
from tests.damage.mutations import Operation


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A small state directory with two jobs, a hard link, a hole and a FIFO."""
    state = tmp_path / "state"
    for job in ("one", "two"):
        (state / "jobs" / job).mkdir(parents=True)
        (state / "jobs" / job / "data").write_bytes(job.encode() * 100)
    (state / "identity").write_text("spool")
    os.link(state / "identity", state / "jobs" / "one" / "marker")
    with (state / "jobs" / "two" / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data after a hole")
        file.truncate(3 << 20)
    os.mkfifo(state / "jobs" / "two" / "pipe")
    return state


def test_a_copy_keeps_content_holes_links_and_fifos(state: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_state(state, copy)
    for path in state.rglob("*"):
        same = copy / path.relative_to(state)
        assert same.lstat().st_mode == path.lstat().st_mode
        if path.is_file():
            assert same.read_bytes() == path.read_bytes()
            assert same.stat().st_blocks <= path.stat().st_blocks
            assert same.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert (copy / "identity").samefile(copy / "jobs" / "one" / "marker")
    assert not (copy / "identity").samefile(state / "identity")


def test_every_file_is_found_but_what_is_spared(state: Path) -> None:
    for spared in ("lock", "endpoint", "stderr"):
        (state / spared).touch()
    (state / "pki").mkdir()
    (state / "pki" / "key").touch()
    (state / "audit").mkdir()
    (state / "audit" / "head").touch()
    (state / "catalog.db").touch()
    found = find_victims(state, {"one": "first", "two": "second"})
    assert [(victim.area, victim.job, victim.name) for victim in found] == [
        ("audit", "", "audit/head"),
        ("catalog", "", "catalog.db"),
        ("jobs", "first", "data"),
        ("jobs", "first", "marker"),
        ("jobs", "second", "data"),
        ("jobs", "second", "pipe"),
        ("jobs", "second", "sparse"),
        ("state", "", "identity"),
    ]
    assert found[2] == Victim("jobs", "first", "data", 300)
    assert [victim.name for victim in found if victim.is_linked] == ["marker", "identity"]


@pytest.mark.parametrize("operation", [*Operation])
def test_damage_changes_one_file_and_leaves_the_others(state: Path, operation: Operation) -> None:
    path, other = state / "jobs" / "one" / "data", state / "jobs" / "two" / "data"
    before, others = path.read_bytes(), other.read_bytes()
    path.write_bytes(before := Random(1).randbytes(500))
    assert damage(operation, path, other, Random(3))
    if operation is Operation.DIRECTORY:
        assert path.is_dir()
    elif operation is Operation.REMOVE:
        assert not path.exists()
    else:
        assert path.read_bytes() != before
    assert other.read_bytes() == (before if operation is Operation.SWAP_FILES else others)


def test_bytes_are_changed_in_place_and_holes_stay(state: Path) -> None:
    path = state / "jobs" / "two" / "sparse"
    before = path.stat()
    assert damage(Operation.FLIP_BIT, path, None, Random(1))
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_blocks <= before.st_blocks + 16


@pytest.mark.parametrize("operation", [*Operation])
def test_a_fifo_is_replaced_or_left_alone(state: Path, operation: Operation) -> None:
    path = state / "jobs" / "two" / "pipe"
    possible = operation in (Operation.REMOVE, Operation.EMPTY, Operation.DIRECTORY)
    assert (damage(operation, path, None, Random(1)) is not None) == possible
    assert path.is_fifo() != possible
