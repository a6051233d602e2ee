"""The keeper, and engines of several processes, with a catalogue that is damaged."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from tests.daemon import Daemon, end_jobs
from tests.engine.catalogs import damage_all, settle
from tests.engine.logs import ME, read_log, shell
from workerd.engine.engine import Engine


async def test_a_keeper_that_starts_finds_a_damaged_text(tmp_path: Path) -> None:
    """The owner is one of the texts that lists go by: with another one the job would be missing."""
    async with Engine(tmp_path) as engine:
        ids = [await engine.spawn(shell("true")) for _ in range(3)]
        for job_id in ids:
            await read_log(engine, job_id)
        await engine.wait_scanned()
    path = tmp_path / "catalog.sqlite"
    data = path.read_bytes()
    place = data.find(ME.id.encode())
    while place >= 0:  # each of them in turn
        path.write_bytes(data[:place] + b"f" + data[place + 1 :])
        async with Engine(tmp_path) as engine:
            page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
            assert sorted(job.id for job in page.jobs) == sorted(ids)
        place = data.find(ME.id.encode(), place + 1)


async def test_a_job_that_the_log_of_the_catalogue_lost_is_listed_by_every_engine_after_a_start(
    tmp_path: Path,
) -> None:
    """As after a power cut: the catalogue says that it is complete, and is what it was some seconds before."""
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()
        settle(tmp_path / "catalog.sqlite")
        before = (tmp_path / "catalog.sqlite").read_bytes()
        job_id = await engine.spawn(shell("exec sleep 1000"))
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"catalog.sqlite{suffix}").unlink(missing_ok=True)
    (tmp_path / "catalog.sqlite").write_bytes(before)
    try:
        async with Engine(tmp_path), Engine(tmp_path, keeps=False) as other:
            page = await other.list_jobs(ME.id, states=(), name="", size=10, after=None)
            assert [job.id for job in page.jobs] == [job_id]
    finally:
        end_jobs(tmp_path)


async def test_a_keeper_starts_and_completes_the_catalogue_later_while_another_program_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workerd.engine.keeper._PAUSES_SECONDS", (0.05,))
    monkeypatch.setattr("workerd.engine.database._BUSY_SECONDS", 0.05)
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("exec sleep 1000"))
        await engine.wait_scanned()
    holder = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        async with Engine(tmp_path) as engine, asyncio.timeout(30):
            assert not engine.status(job_id).ended
            holder.execute("COMMIT")
            page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
            assert [job.id for job in page.jobs] == [job_id]
    finally:
        holder.close()
        end_jobs(tmp_path)


def test_a_list_waits_for_the_catalogue_that_is_made_again_while_the_daemon_runs(any_daemon: Daemon) -> None:
    ids = {any_daemon.workerctl("spawn", "--", "true").stdout.decode().strip() for _ in range(3)}
    running = any_daemon.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
    path = any_daemon.state / "catalog.sqlite"
    for _ in range(2):
        damage_all(path)
        result = any_daemon.workerctl("list", "--output", "json")
        assert result.returncode == 0, result.stderr
        assert all(job_id in result.stdout.decode() for job_id in (*ids, running))
    assert any_daemon.workerctl("spawn", "--", "true").returncode == 0
    end_jobs(any_daemon.state)
