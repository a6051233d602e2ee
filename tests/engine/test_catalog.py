"""The catalogue may be deleted, damaged or of an older make: the folders give it back."""

import asyncio
import shutil
import sqlite3
import time
from pathlib import Path

import msgspec
import pytest

from tests.engine.logs import ME, read_log, shell
from tests.locks import held_by_another
from workerd.engine import database
from workerd.engine.catalog import Catalog
from workerd.engine.engine import Engine
from workerd.engine.errors import CatalogBusy
from workerd.engine.folder import JobFolder

FILES = ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm")


async def listed(engine: Engine) -> list[str]:
    page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
    return [job.id for job in page.jobs]


async def test_a_long_list_leaves_others_their_turn(engine: Engine) -> None:
    count = 5
    for _ in range(count):
        await read_log(engine, await engine.spawn(shell("true")))
    await engine.wait_scanned()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    other = asyncio.create_task(take_turns())
    assert len(await listed(engine)) == count
    assert turns >= count - 1
    other.cancel()


@pytest.mark.parametrize("files", [FILES, FILES[:1]], ids=["all", "alone"])
async def test_it_may_be_deleted_while_jobs_run(engine: Engine, tmp_path: Path, files: tuple[str, ...]) -> None:
    ended = await engine.spawn(shell("true"))
    await read_log(engine, ended)
    running = await engine.spawn(shell("exec sleep 1000"))
    for name in files:
        (tmp_path / "state" / name).unlink(missing_ok=True)
    assert await listed(engine) == [running, ended]
    for name in files:
        (tmp_path / "state" / name).unlink(missing_ok=True)
    late = await engine.spawn(shell("true"))
    await read_log(engine, late)
    assert await listed(engine) == [late, running, ended]
    await engine.stop(running, ME, 0)
    await read_log(engine, running)
    assert await listed(engine) == [late, running, ended]


async def test_one_that_is_damaged_or_older_is_made_again(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("true"))
        await read_log(engine, job_id)
    for name in FILES:
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / FILES[0]).write_bytes(b"no database at all" * 1000)
    async with Engine(tmp_path) as engine:
        assert await listed(engine) == [job_id]
    for name in FILES:
        (tmp_path / name).unlink(missing_ok=True)
    older = sqlite3.connect(tmp_path / FILES[0])
    older.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, owner TEXT, ended INTEGER)")
    older.close()
    async with Engine(tmp_path) as engine:
        assert await listed(engine) == [job_id]


async def test_a_folder_that_somebody_deleted_is_forgotten(tmp_path: Path) -> None:
    """Whether its job was known to have ended or not."""
    async with Engine(tmp_path) as engine:
        ids = [await engine.spawn(shell("true")) for _ in range(2)]
        for job_id in ids:
            await read_log(engine, job_id)
    shutil.rmtree(tmp_path / "jobs" / ids[0])
    with Catalog(tmp_path / FILES[0]) as catalog:
        spec = JobFolder(tmp_path / "jobs" / ids[1]).read_spec()
        catalog.add(msgspec.structs.replace(spec, id="00000000-0000-4000-8000-000000000000"))
    async with Engine(tmp_path) as engine:
        assert await listed(engine) == ids[1:]
        assert [job.id for job in engine._shelf.catalog.ended()] == ids[1:]
        assert engine._shelf.catalog.unended() == []


def test_whoever_holds_it_does_not_hold_up_the_daemon_for_long(tmp_path: Path) -> None:
    """The event loop waits with it: a client takes a daemon for dead that is silent for longer."""
    path = tmp_path / FILES[0]
    with Catalog(path) as catalog:
        busy = sqlite3.connect(path, isolation_level=None)
        busy.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(CatalogBusy):
            catalog.remove("00000000-0000-4000-8000-000000000000")
        assert time.monotonic() - began < 5
        busy.close()


def test_one_that_is_held_cannot_be_opened_either(tmp_path: Path) -> None:
    path = tmp_path / FILES[0]
    busy = sqlite3.connect(path, isolation_level=None)
    busy.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CatalogBusy, match="another program"):
        Catalog(path)
    busy.close()


def test_one_whose_lock_another_program_holds_is_an_error_that_names_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is needed to open the catalogue, to make it again, and to close it after that."""
    monkeypatch.setattr(database, "_LOCK_SECONDS", 0.2)
    path = tmp_path / "catalog.sqlite"
    with Catalog(path) as catalog, held_by_another(path.with_suffix(".lock")) as holder:
        assert catalog.unended() == []
        with pytest.raises(CatalogBusy, match=rf"process {holder} \(sleep\)"):
            Catalog(path)
        for name in FILES:
            (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(CatalogBusy, match=rf"process {holder} \(sleep\)"):
            catalog.unended()
