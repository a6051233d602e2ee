"""Processes that do not answer: a stopped zygote, a stopped supervisor, processes that no signal ends, hung calls."""

import _thread
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from system.file_lock import LockHeld
from tests.engine.logs import ME, has_ended, read_log, shell, wait_for_output
from tests.freezing import Freezer
from tests.locks import held_by_another
from tests.waiting import eventually
from workerd.engine import launcher, sharing, shelf, stopping, threads
from workerd.engine.engine import Engine
from workerd.engine.errors import LauncherFailed, NoAnswer, SpawnGivenUp, StartUnconfirmed, StopUnconfirmed
from workerd.engine.job import Exited, JobState, Killed, Lost, StopOrder, Stopped, Stream
from workerd.engine.launcher import Launcher
from workerd.engine.reply import READY
from workerd.engine.threads import Threads

# Not before the supervisor has confirmed the start.
STOPS_ITS_SUPERVISOR = "while [ ! -e go ]; do sleep 0.02; done; kill -STOP $PPID; echo stopped; exec sleep 1000"
KEEPS_ITS_SUPERVISOR_STOPPED = (
    f"{STOPS_ITS_SUPERVISOR.removesuffix('exec sleep 1000')} while kill -STOP $PPID; do :; done"
)


def zygote_of(engine: Engine) -> int:
    assert engine._launcher._zygote is not None
    return engine._launcher._zygote.pid


def supervisor_of(engine: Engine, job_id: str) -> int:
    supervisor = engine._shelf.folder(job_id).read().supervisor
    assert supervisor is not None
    return supervisor.pid


async def spawn_stopped(engine: Engine, directory: Path, script: str) -> str:
    """Spawn a job that stops its supervisor, and wait until it has."""
    job_id = await engine.spawn(shell(script, working_directory=str(directory)))
    (directory / "go").touch()
    await eventually(lambda: _is_stopped(supervisor_of(engine, job_id)))
    return job_id


async def test_a_stopped_zygote_is_replaced_and_the_spawn_done(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_STUCK_SECONDS", 0.5)
    before = zygote_of(engine)
    os.kill(before, signal.SIGSTOP)
    async with asyncio.timeout(30):
        ids = await asyncio.gather(*(engine.spawn(shell("echo ran")) for _ in range(3)))
    assert zygote_of(engine) != before
    for job_id in ids:
        assert (await read_log(engine, job_id)).stdout == b"ran\n"


def test_a_zygote_that_no_signal_ends_does_not_keep_the_launcher_from_ending(freezer: Freezer) -> None:
    with Launcher() as ended:
        assert ended._zygote is not None
        zygote = ended._zygote
        freezer.freeze(zygote.pid)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    freezer.thaw()
    assert zygote.wait(30) == -signal.SIGKILL


async def test_a_spawn_that_its_caller_gave_up_never_runs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launcher, "_STUCK_SECONDS", 0.5)
    os.kill(zygote_of(engine), signal.SIGSTOP)
    callers = {"is there": True}
    ran = tmp_path / "ran"
    spawning = asyncio.create_task(engine.spawn(shell(f"echo > {ran}"), lambda: callers["is there"]))
    await eventually(lambda: _is_true(engine._launcher._sending.locked() or bool(engine._spawner._spawning)))
    callers["is there"] = False
    with pytest.raises(SpawnGivenUp):
        async with asyncio.timeout(30):
            await spawning
    last = await engine.spawn(shell("true"))  # the zygote has come past the one before
    await read_log(engine, last)
    assert not ran.exists()
    assert [path.name for path in engine._shelf.jobs.iterdir()] == [last]


async def test_a_spawn_that_one_of_two_callers_gave_up_runs(engine: Engine) -> None:
    request = shell("echo ran", request_key="both")
    first, second = await asyncio.gather(engine.spawn(request, lambda: False), engine.spawn(request, lambda: True))
    assert first == second
    assert (await read_log(engine, first)).stdout == b"ran\n"


async def test_no_supervisor_in_time_is_an_answer_and_leaves_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher's last resort, when the zygotes that it starts do not get on either."""
    monkeypatch.setattr(launcher, "_STUCK_SECONDS", 0.2)
    monkeypatch.setattr(launcher, "_READY_SECONDS", 0.2)
    monkeypatch.setattr(engine._launcher, "_kill_stuck_zygote", lambda: None)
    os.kill(zygote_of(engine), signal.SIGSTOP)
    try:
        with pytest.raises(LauncherFailed, match=r"none was ready within 0\.2 s"):
            async with asyncio.timeout(30):
                await engine.spawn(shell("true"))
    finally:
        os.kill(zygote_of(engine), signal.SIGCONT)
    assert not [*engine._shelf.jobs.iterdir()]
    await read_log(engine, await engine.spawn(shell("true")))


async def test_a_start_that_is_not_confirmed_in_time_is_an_answer_and_may_still_come(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk or the program's file hangs: here the confirmation is held back."""
    monkeypatch.setattr(launcher, "START_SECONDS", 0.3)
    received = launcher._receive
    answers = []

    async def hold_back(there: object) -> bytes:
        answers.append(await received(there))  # type: ignore[arg-type]
        if answers[-1] != READY:
            await asyncio.sleep(1)
        return answers[-1]

    monkeypatch.setattr(launcher, "_receive", hold_back)
    with pytest.raises(StartUnconfirmed) as unconfirmed:
        await engine.spawn(shell("echo ran"))
    [job] = [path.name for path in engine._shelf.jobs.iterdir()]
    assert job in str(unconfirmed.value)
    assert (await read_log(engine, job)).stdout == b"ran\n"


async def test_a_supervisor_that_its_job_stopped_at_once_is_continued_to_confirm_the_start(engine: Engine) -> None:
    async with asyncio.timeout(30):
        job_id = await engine.spawn(shell("kill -STOP $PPID; echo after"))
        assert (await read_log(engine, job_id)).stdout == b"after\n"


async def test_a_supervisor_that_was_stopped_is_continued_to_take_an_order(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stopping, "_LOOK_SECONDS", 0.2)
    job_id = await spawn_stopped(engine, tmp_path, STOPS_ITS_SUPERVISOR)
    async with asyncio.timeout(20):
        await engine.stop(job_id, ME, 5)
        log = await read_log(engine, job_id)
    assert log.end is not None
    assert log.end.cause == Stopped(ME, signal.SIGTERM, Killed(signal.SIGTERM))
    assert log.stdout == b"stopped\n"


async def test_a_job_that_keeps_its_supervisor_stopped_is_killed_and_has_a_typed_end(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stopping, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(stopping, "_PATIENCE_SECONDS", 1.0)
    job_id = await spawn_stopped(engine, tmp_path, KEEPS_ITS_SUPERVISOR_STOPPED)
    async with asyncio.timeout(30):
        await engine.stop(job_id, ME, 0)
        log = await read_log(engine, job_id)
    assert log.end is not None
    assert log.end.cause == Stopped(ME, signal.SIGKILL, Killed(signal.SIGKILL))
    assert log.stdout == b"stopped\n"


async def test_a_supervisor_that_sees_the_end_before_the_order_that_brought_it_about_takes_both(
    engine: Engine, tmp_path: Path
) -> None:
    job_id = await spawn_stopped(engine, tmp_path, STOPS_ITS_SUPERVISOR)
    for order in (StopOrder(ME, 1000.0), StopOrder(ME, 0.0, kills=True)):
        assert engine._shelf.folder(job_id).order_stop(order)
    os.kill(engine.status(job_id).status.pid, signal.SIGKILL)
    os.kill(supervisor_of(engine, job_id), signal.SIGCONT)
    log = await read_log(engine, job_id)
    assert log.end is not None
    assert log.end.cause == Stopped(ME, signal.SIGKILL, Killed(signal.SIGKILL))


async def test_any_number_of_orders_may_wait_for_a_supervisor_that_was_stopped(engine: Engine, tmp_path: Path) -> None:
    job_id = await spawn_stopped(engine, tmp_path, STOPS_ITS_SUPERVISOR)
    for _ in range(2000):
        assert engine._shelf.folder(job_id).order_stop(StopOrder(ME, 0.0))
    os.kill(supervisor_of(engine, job_id), signal.SIGCONT)
    log = await read_log(engine, job_id)
    assert log.end is not None
    assert log.end.cause == Stopped(ME, signal.SIGKILL, Killed(signal.SIGKILL))


async def test_an_order_that_comes_after_a_jobs_own_end_does_not_change_how_it_ended(
    engine: Engine, tmp_path: Path
) -> None:
    """Also an order that announces that the daemon kills the job."""
    job_id = await spawn_stopped(engine, tmp_path, f"{STOPS_ITS_SUPERVISOR.removesuffix('exec sleep 1000')} exit 3")
    await eventually(lambda: _is_true(has_ended(engine.status(job_id).status.pid)))
    assert engine._shelf.folder(job_id).order_stop(StopOrder(ME, 0.0, kills=True))
    os.kill(supervisor_of(engine, job_id), signal.SIGCONT)
    log = await read_log(engine, job_id)
    assert log.end is not None
    assert log.end.cause == Exited(3)


async def test_a_job_that_stops_its_supervisor_after_the_order_was_taken_is_killed_when_the_grace_is_over(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_PATIENCE_SECONDS", 0.5)
    script = "trap 'kill -STOP $PPID; echo stopped' TERM; echo ready; while :; do sleep 0.02; done"
    job_id = await engine.spawn(shell(script))
    await wait_for_output(engine, job_id, b"ready")
    async with asyncio.timeout(30):
        job = await engine.stop(job_id, ME, 0.5)
        assert job.status.state is JobState.STOPPING
        log = await read_log(engine, job_id)
    assert log.end is not None
    assert isinstance(log.end.cause, Stopped)
    assert (log.end.cause.by, log.end.cause.outcome) == (ME, Killed(signal.SIGKILL))
    await eventually(lambda: _is_true(not engine._stopper._following))


async def test_an_order_with_a_shorter_grace_is_carried_out_though_the_supervisor_was_stopped_after_the_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(stopping, "_LOOK_SECONDS", 0.2)
    script = "trap 'kill -STOP $PPID; echo stopped' TERM; echo ready; while :; do sleep 0.02; done"
    job_id = await engine.spawn(shell(script))
    await wait_for_output(engine, job_id, b"ready")
    async with asyncio.timeout(30):
        await engine.stop(job_id, ME, 1000)
        await eventually(lambda: _is_stopped(supervisor_of(engine, job_id)))
        await engine.stop(job_id, ME, 0)
        assert (await read_log(engine, job_id)).end is not None


async def test_a_stop_that_cannot_be_carried_out_is_an_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stopping, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(stopping, "_LIMIT_SECONDS", 0.5)
    monkeypatch.setattr(stopping, "continue_supervisor", lambda _: None)  # as if it hung in the kernel
    job_id = await spawn_stopped(engine, tmp_path, STOPS_ITS_SUPERVISOR)
    supervisor = supervisor_of(engine, job_id)
    with pytest.raises(StopUnconfirmed, match=job_id):
        async with asyncio.timeout(20):
            await engine.stop(job_id, ME, 0)
    os.kill(supervisor, signal.SIGCONT)
    assert (await read_log(engine, job_id)).end is not None


async def test_processes_that_no_signal_ends_hold_up_their_own_jobs_alone(tmp_path: Path, freezer: Freezer) -> None:
    """More of them than there are threads of any kind."""
    async with Engine(tmp_path) as engine:
        held = [await engine.spawn(shell("exec sleep 1000")) for _ in range(12)]
        ordinary = await engine.spawn(shell("exec sleep 1000"))
        freezer.freeze(*(engine.status(job_id).status.pid for job_id in held))
        for job_id in (*held, ordinary):
            os.kill(supervisor_of(engine, job_id), signal.SIGKILL)
        async with asyncio.timeout(10):
            log = await read_log(engine, ordinary)
            assert log.end is not None
            assert isinstance(log.end.cause, Lost)
            done = await engine.spawn(shell("true"))
            await read_log(engine, done)
            await engine.share(done, ME, ["status"])
            await engine.remove(done)
        began = time.monotonic()
    assert time.monotonic() - began < 5  # the engine ends without waiting for them
    freezer.thaw()
    async with Engine(tmp_path) as engine:
        for job_id in held:
            assert engine.status(job_id).status.state is not JobState.DAMAGED
            async with asyncio.timeout(30):
                assert (await read_log(engine, job_id, streams=frozenset(Stream))).end is not None


async def test_a_call_that_hangs_is_an_answer_and_holds_up_no_other_kind() -> None:
    hung, fine = (Threads(work, most=1, limit_seconds=0.3) for work in ("hanging", "working"))
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(NoAnswer, match=r"hanging took more than 0\.3 s"):
            await hung.run(os.read, read_end, 1)
        assert await fine.run(len, "four") == 4
        with pytest.raises(NoAnswer):  # its only turn is taken until the thread is done
            await hung.run(len, "four")
        os.write(write_end, b"x")
        await eventually(lambda: _has_turn(hung))
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_a_thread_that_never_begins_is_an_error_and_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the thread got no memory to begin with: the call is not made, and the next has its turn."""
    monkeypatch.setattr(threads, "_BEGIN_SECONDS", 0.2)
    begin, kept = _thread.start_new_thread, []
    alone = Threads("working", most=1, limit_seconds=None)
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", lambda *call: kept.append(call))
        with pytest.raises(RuntimeError, match=r"has not begun within 0\.2 s"):
            async with asyncio.timeout(20):
                await alone.run(kept.append, "called")
    async with asyncio.timeout(20):
        assert await alone.run(len, "four") == 4
        begin(*kept[0])  # it gets its memory after all
        assert await alone.run(len, "four") == 4
    assert "called" not in kept


async def test_an_error_of_a_call_in_a_thread_is_the_callers() -> None:
    with pytest.raises(TimeoutError, match="of its own"):
        await Threads("failing", most=1, limit_seconds=5).run(_fail)


def test_a_call_that_hangs_does_not_keep_the_process_from_ending() -> None:
    code = """
import asyncio, os
from workerd.engine.errors import LauncherFailed, NoAnswer
from workerd.engine.reply import READY
from workerd.engine.threads import Threads

async def main():
    try:
        await Threads("hanging", most=1, limit_seconds=0.1).run(os.read, os.pipe()[0], 1)
    except NoAnswer:
        print("answered")

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout) == (0, "answered\n"), ended.stderr


async def test_changes_of_one_jobs_shares_hold_up_no_other_job(engine: Engine) -> None:
    """The changes of one job wait for each other, and none of another job or another kind for them."""
    one, other = await engine.spawn(shell("true")), await engine.spawn(shell("true"))
    with engine._shelf.folder(one).wait_held(0):
        waiting = [asyncio.create_task(engine.share(one, ME, ["status"])) for _ in range(100)]
        async with asyncio.timeout(10):
            assert len(await engine.share(other, ME, ["status"])) == 1
            await read_log(engine, await engine.spawn(shell("true")))
            await engine.remove(other)
    async with asyncio.timeout(20):
        assert len(set(await asyncio.gather(*waiting))) == 1


async def test_folders_that_other_programs_lock_hold_up_no_other_job(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As jobs of the daemon's account can lock their own: more of them than there are threads for it."""
    for module in (sharing, shelf):
        monkeypatch.setattr(module, "HELD_SECONDS", 0.3)
    ids = [await engine.spawn(shell("true")) for _ in range(13)]
    for job_id in ids:
        await read_log(engine, job_id)
    *locked, other = ids
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(held_by_another(engine._shelf.folder(each).path)) for each in locked]
        for act in (lambda each: engine.share(each, ME, ["status"]), engine.remove):
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*map(act, locked), return_exceptions=True)
            for answer, holder in zip(answers, holders, strict=True):
                assert isinstance(answer, LockHeld)
                assert f"process {holder} (sleep)" in str(answer)
            async with asyncio.timeout(5):
                assert len(await engine.share(other, ME, ["status"])) == 1
    for job_id in ids:
        await engine.remove(job_id)


async def test_changes_of_jobs_that_other_programs_lock_take_no_thread(engine: Engine) -> None:
    """More of them than there are threads for shares."""
    *locked, other = [await engine.spawn(shell("true")) for _ in range(13)]
    with contextlib.ExitStack() as stack:
        for each in locked:
            stack.enter_context(held_by_another(engine._shelf.folder(each).path))
        waiting = [asyncio.create_task(engine.share(each, ME, ["status"])) for each in locked]
        await asyncio.wait(waiting, timeout=0.2)
        async with asyncio.timeout(5):
            assert len(await engine.share(other, ME, ["status"])) == 1
    async with asyncio.timeout(20):
        assert [len(shares) for shares in await asyncio.gather(*waiting)] == [1] * len(locked)


async def test_removals_that_wait_for_a_locked_folder_leave_nothing_open(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "HELD_SECONDS", 0.5)
    monkeypatch.setattr(engine._shelf._removing, "_limit_seconds", 0.1)
    job_id = await engine.spawn(shell("true"))
    await read_log(engine, job_id)
    with held_by_another(engine._shelf.folder(job_id).path):
        before = len(os.listdir("/proc/self/fd"))
        async with asyncio.timeout(20):
            errors = await asyncio.gather(*(engine.remove(job_id) for _ in range(6)), return_exceptions=True)
        assert len(os.listdir("/proc/self/fd")) == before
        assert {type(error) for error in errors} == {LockHeld}


async def test_a_job_that_was_removed_has_ended(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = await engine.spawn(shell("true"))
    await read_log(engine, job_id)
    folder = engine._shelf.folder(job_id)
    await engine.remove(job_id)
    await engine._stopper._see_to_end(folder, StopOrder(ME, 0.0))
    assert "it is not known whether" not in capsys.readouterr().out


def _fail() -> None:
    raise TimeoutError("of its own")


async def _has_turn(threads: Threads) -> bool:
    with contextlib.suppress(NoAnswer):
        return await threads.run(len, "four") == 4
    return False


async def _is_true(condition: bool) -> bool:
    return condition


async def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
