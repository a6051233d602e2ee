"""Jobs belong to no engine: what happens when engines, zygotes and supervisors end."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.daemon import end_jobs
from tests.engine.logs import ME, has_ended, program, read_log, shell, wait_for_output
from tests.waiting import eventually
from workerd.engine import identity
from workerd.engine.engine import Engine
from workerd.engine.errors import JobNotFound, LauncherFailed, StateDirectoryInUse
from workerd.engine.folder import JobFolder
from workerd.engine.job import DamagedJob, Exited, Job, Lost, Stopped, Stream
from workerd.engine.journal import JournalWriter, Supervised
from workerd.engine.reader import LogReader
from workerd.engine.reply import GO, LONGEST, READY
from workerd.engine.spool import SpoolWriter
from workerd.engine.storage import DEFAULT_STORAGE
from workerd.engine.tree import parent_of
from workerd.engine.watcher import Watcher

NEVER = "00000000-0000-4000-8000-000000000000"


async def test_a_job_outlives_the_engine_and_another_one_takes_it_up(tmp_path: Path) -> None:
    state, gate = tmp_path / "state", tmp_path / "gate"
    os.mkfifo(gate)
    async with Engine(state) as engine:
        job_id = await engine.spawn(shell(f"echo before; cat {gate}; echo after; exit 5"))
        await wait_for_output(engine, job_id, b"before")
    gate.write_text("meanwhile\n")  # written while there is no engine
    async with Engine(state) as engine:
        log = await read_log(engine, job_id)
    assert log.stdout == b"before\nmeanwhile\nafter\n"
    assert log.end is not None
    assert log.end.cause == Exited(5)


async def test_an_engine_can_stop_a_job_that_another_one_started(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
    async with Engine(tmp_path) as engine:
        await engine.stop(job_id, ME, 0)
        end = (await read_log(engine, job_id)).end
    assert end is not None
    assert isinstance(end.cause, Stopped)


async def test_a_job_whose_supervisor_is_killed_dies_and_is_lost(engine: Engine) -> None:
    job_id = await engine.spawn(program("daemonize", "stubborn"))
    away = int((await wait_for_output(engine, job_id, b"\n")).split()[1])
    pid = engine.status(job_id).status.pid
    supervisor = parent_of(pid)
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    log = await read_log(engine, job_id)
    assert log.end is not None
    assert isinstance(log.end.cause, Lost)
    assert log.stdout.startswith(b"ready")
    assert log.end.stdout.size_bytes == len(log.stdout)
    assert has_ended(pid)
    assert has_ended(away)


async def test_a_supervisor_killed_while_no_engine_runs_is_noticed_by_the_next(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
        await wait_for_output(engine, job_id, b"ready")
        pid = engine.status(job_id).status.pid
    supervisor = parent_of(pid)
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    async with Engine(tmp_path) as engine:
        end = (await read_log(engine, job_id)).end
    assert end is not None
    assert isinstance(end.cause, Lost)


async def test_a_killed_zygote_is_replaced_and_its_supervisors_live_on(engine: Engine) -> None:
    first = await engine.spawn(shell("echo ready; exec sleep 1000"))
    await wait_for_output(engine, first, b"ready")
    supervisor = parent_of(engine.status(first).status.pid)
    assert supervisor
    zygote = parent_of(supervisor)
    assert zygote
    os.kill(zygote, signal.SIGKILL)
    second = await engine.spawn(shell("echo second"))
    assert (await read_log(engine, second)).stdout == b"second\n"
    await engine.stop(first, ME, 0)
    assert (await read_log(engine, first)).stdout == b"ready\n"


async def test_a_supervisor_heeds_no_signal_that_ends_a_session_or_a_machine(engine: Engine) -> None:
    """Service managers, shells and logouts send these to whatever they find; the job is not theirs to end."""
    job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
    await wait_for_output(engine, job_id, b"ready")
    supervisor = parent_of(engine.status(job_id).status.pid)
    assert supervisor
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
        os.kill(supervisor, number)
    await engine.stop(job_id, ME, 0)
    end = (await read_log(engine, job_id)).end
    assert end is not None
    assert isinstance(end.cause, Stopped)


async def test_the_catalogue_is_made_again_from_the_folders(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        ids = [await engine.spawn(shell("true")) for _ in range(3)]
        for job_id in ids:
            await read_log(engine, job_id)
    for path in tmp_path.glob("catalog.sqlite*"):
        path.unlink()
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()
        page = await engine.list_jobs(ME.id, states=(), name="", size=10, after=None)
    assert [job.id for job in page.jobs] == ids[::-1]


async def test_a_folder_of_a_job_that_was_never_started_is_removed(tmp_path: Path) -> None:
    async with Engine(tmp_path):
        pass
    abandoned = JobFolder(tmp_path / "jobs" / NEVER)
    spec = shell("true", working_directory="/").specify(NEVER, 1, DEFAULT_STORAGE)
    os.close(abandoned.create(spec, "its spool", tmp_path / "spool"))
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()
        with pytest.raises(JobNotFound):
            engine.status(NEVER)

        async def removed() -> bool:
            return not abandoned.path.exists()

        await eventually(removed)
        assert (await engine.list_jobs(None, states=(), name="", size=10, after=None)).jobs == ()


async def test_a_job_that_another_process_removes_just_then_is_not_found(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its status was read, and before anything else of it is."""
    job_ids = [await engine.spawn(shell("true")) for _ in range(3)]
    for job_id in job_ids:
        await read_log(engine, job_id)
    watch, opened = Watcher.watch, LogReader.__init__

    def remove() -> None:
        job_id = job_ids.pop()
        (tmp_path / "state" / "jobs" / job_id).rename(tmp_path / job_id)

    def watch_late(self: Watcher, path: Path) -> AbstractContextManager[asyncio.Event]:
        remove()
        return watch(self, path)

    def open_late(self: LogReader, folder: JobFolder, streams: frozenset[Stream]) -> None:
        remove()
        opened(self, folder, streams)

    with monkeypatch.context() as patch:
        patch.setattr(Watcher, "watch", watch_late)
        with pytest.raises(JobNotFound):
            await engine.stop(job_ids[-1], ME, 0)
        with pytest.raises(JobNotFound):
            await read_log(engine, job_ids[-1])
    monkeypatch.setattr(LogReader, "__init__", open_late)
    with pytest.raises(JobNotFound):
        await read_log(engine, job_ids[-1])


async def test_two_engines_do_not_share_a_state_directory(tmp_path: Path) -> None:
    async with Engine(tmp_path):
        with pytest.raises(StateDirectoryInUse):
            async with Engine(tmp_path):
                pass
    end_jobs(tmp_path)


async def test_what_is_no_job_is_left_alone(tmp_path: Path) -> None:
    stray = tmp_path / "jobs" / "my-backup"
    stray.mkdir(parents=True)
    (stray / "file").write_text("precious")
    async with Engine(tmp_path) as engine:
        await engine.wait_scanned()
    assert (stray / "file").read_text() == "precious"


async def test_one_damaged_folder_does_not_keep_the_engine_from_the_others(tmp_path: Path) -> None:
    async with Engine(tmp_path) as engine:
        job_id = await engine.spawn(shell("echo fine"))
        await read_log(engine, job_id)
    damaged = tmp_path / "jobs" / NEVER
    damaged.mkdir()
    (damaged / "status").write_bytes(b'{"state":"running","cgroup":"\xff"}')
    (damaged / "spec").write_text("{}")
    async with Engine(tmp_path) as engine:
        page = await engine.list_jobs(None, states=(), name="", size=10, after=None)
        assert {type(job): job.id for job in page.rows} == {Job: job_id, DamagedJob: NEVER}
        assert (await read_log(engine, job_id)).stdout == b"fine\n"
        await engine.remove(NEVER)
    assert os.listdir(tmp_path / "jobs") == [job_id]


async def test_a_job_whose_engine_vanished_before_the_answer_runs_on(tmp_path: Path) -> None:
    """The supervisor's answer meets a closed pipe: what it started must not die of that."""
    folder = JobFolder(tmp_path / NEVER)
    spec = shell("echo alone; exit 6", working_directory="/").specify(NEVER, 1, DEFAULT_STORAGE)
    identity_file = tmp_path / "spool"
    lock = folder.create(spec, identity.establish(identity_file), identity_file)
    directory = os.open(folder.path, os.O_RDONLY)
    engine, reply = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reply:
        descriptors = (directory, lock, reply.fileno())
        arguments = ", ".join(map(str, descriptors))
        code = f"from workerd.engine.supervisor import main; main({NEVER!r}, {arguments})"
        with subprocess.Popen([sys.executable, "-c", code], pass_fds=descriptors) as supervisor:
            with engine:
                engine.settimeout(30)
                assert engine.recv(LONGEST) == READY
                engine.send(GO)
            assert supervisor.wait(30) == 0
    os.close(directory)
    os.close(lock)
    status = folder.read_status()
    assert status is not None
    assert status.end is not None
    assert status.end.cause == Exited(6)
    assert folder.output.read_bytes() == b"alone\n"


async def test_a_job_whose_supervisor_died_before_it_answered_is_kept_as_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may have been executed is not forgotten: its key finds the job, and starts nothing."""

    async def die(folder: JobFolder, lock: int, is_wanted: Callable[[], bool]) -> None:  # noqa: ARG001
        SpoolWriter(folder).close()
        JournalWriter(lock, folder.job_id, folder.read().size).append(Supervised(1, 0, "an earlier boot", ""))
        raise LauncherFailed("killed")

    monkeypatch.setattr(engine._launcher, "launch", die)
    with pytest.raises(LauncherFailed):
        await engine.spawn(shell("true", request_key="k"))
    log = await read_log(engine, await engine.spawn(shell("true", request_key="k")))
    assert log.end is not None
    assert isinstance(log.end.cause, Lost)
