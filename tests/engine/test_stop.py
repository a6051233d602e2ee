"""Ending jobs: all of them, by order, by time, or by their own end."""

import contextlib
import os
import time
from pathlib import Path

import pytest

from tests.engine.logs import ME, has_ended, program, read_log, run, shell, wait_for_output
from workerd.engine.engine import Engine
from workerd.engine.errors import JobIdMalformed, JobNotFound
from workerd.engine.job import Exited, JobEnd, JobState, Killed, Stopped, TimedOut

SIGTERM, SIGKILL = 15, 9


async def end_of(engine: Engine, job_id: str) -> JobEnd:
    end = (await read_log(engine, job_id)).end
    assert end is not None
    return end


async def test_a_stopped_job_says_by_whom_and_how(engine: Engine) -> None:
    job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
    job = await engine.stop(job_id, ME, 10)
    assert job.status.state in (JobState.STOPPING, JobState.ENDED)
    assert (await end_of(engine, job_id)).cause == Stopped(ME, SIGTERM, Killed(SIGTERM))


async def test_a_job_that_ends_well_after_sigterm_was_still_stopped(engine: Engine) -> None:
    job_id = await engine.spawn(shell("trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.01; done"))
    await wait_for_output(engine, job_id, b"ready")
    await engine.stop(job_id, ME, 10)
    log = await read_log(engine, job_id)
    assert log.end is not None
    assert log.end.cause == Stopped(ME, SIGTERM, Exited(4))
    assert log.stdout == b"ready\nbye\n"


async def test_no_grace_is_sigkill_at_once(engine: Engine) -> None:
    job_id = await engine.spawn(program("stubborn"))
    await wait_for_output(engine, job_id, b"ready")
    await engine.stop(job_id, ME, 0)
    assert (await end_of(engine, job_id)).cause == Stopped(ME, SIGKILL, Killed(SIGKILL))


async def test_after_the_grace_comes_sigkill(engine: Engine) -> None:
    job_id = await engine.spawn(program("stubborn"))
    await wait_for_output(engine, job_id, b"ready")
    before = time.monotonic()
    await engine.stop(job_id, ME, 0.3)
    assert (await end_of(engine, job_id)).cause == Stopped(ME, SIGKILL, Killed(SIGKILL))
    assert time.monotonic() - before >= 0.3


async def test_a_second_stop_can_shorten_the_grace_and_not_lengthen_it(engine: Engine) -> None:
    job_id = await engine.spawn(program("stubborn"))
    await wait_for_output(engine, job_id, b"ready")
    await engine.stop(job_id, ME, 1000)
    await engine.stop(job_id, ME, 0)
    await engine.stop(job_id, ME, 1000)
    assert (await end_of(engine, job_id)).cause == Stopped(ME, SIGKILL, Killed(SIGKILL))


async def test_stopping_an_ended_job_is_no_error(engine: Engine) -> None:
    job_id = await engine.spawn(shell("exit 3"))
    await read_log(engine, job_id)
    job = await engine.stop(job_id, ME, 10)
    assert job.status.end is not None
    assert job.status.end.cause == Exited(3)


@pytest.mark.parametrize("kind", ["meek", "stubborn"])
async def test_stop_reaches_a_child_that_double_forked_away(engine: Engine, kind: str) -> None:
    job_id = await engine.spawn(program("daemonize", kind))
    away = int((await wait_for_output(engine, job_id, b"\n")).split()[1])
    assert not has_ended(away)
    await engine.stop(job_id, ME, 0.2)
    await end_of(engine, job_id)
    assert has_ended(away)


async def test_what_the_program_left_behind_is_killed_when_it_ends(engine: Engine) -> None:
    """The grandchild holds both pipes open, and the end comes all the same."""
    log = await run(engine, program("daemonize", "leave", "stubborn"))
    assert log.end is not None
    assert log.end.cause == Exited(0)
    assert has_ended(int(log.stdout.split()[1]))


async def test_a_descendant_in_the_middle_of_forking_does_not_escape(engine: Engine) -> None:
    job_id = await engine.spawn(shell("(while :; do setsid sleep 1000 & done) & sleep 0.2; echo over"))
    assert (await end_of(engine, job_id)).cause == Exited(0)
    mark = f"WORKERD_JOB_ID={job_id}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            assert mark not in path.read_bytes(), f"{path} escaped"


async def test_a_pipe_held_by_a_stranger_does_not_delay_the_end(engine: Engine) -> None:
    """This process opens the job's standard output through /proc and keeps it."""
    job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
    await wait_for_output(engine, job_id, b"ready")
    held = os.open(f"/proc/{engine.status(job_id).status.pid}/fd/1", os.O_WRONLY)
    try:
        await engine.stop(job_id, ME, 0)
        assert (await read_log(engine, job_id)).stdout == b"ready\n"
    finally:
        os.close(held)


async def test_a_stopped_process_is_woken_to_be_terminated(engine: Engine) -> None:
    job_id = await engine.spawn(shell("echo ready; kill -STOP $$"))
    await wait_for_output(engine, job_id, b"ready")
    await engine.stop(job_id, ME, 30)
    assert (await end_of(engine, job_id)).cause == Stopped(ME, SIGTERM, Killed(SIGTERM))


async def test_a_job_that_runs_too_long_is_timed_out(engine: Engine) -> None:
    log = await run(engine, shell("echo ready; exec sleep 1000", timeout_seconds=0.2))
    assert log.end is not None
    assert log.end.cause == TimedOut(0.2, SIGTERM)
    assert log.stdout == b"ready\n"


async def test_a_timeout_escalates_after_the_grace(engine: Engine) -> None:
    log = await run(engine, program("stubborn", timeout_seconds=0.3, grace_seconds=0.1))
    assert log.end is not None
    assert log.end.cause == TimedOut(0.3, SIGKILL)


async def test_a_killed_job_with_a_timeout_is_not_timed_out(engine: Engine) -> None:
    job_id = await engine.spawn(shell("exec sleep 1000", timeout_seconds=1000.0))
    await engine.stop(job_id, ME, 0)
    assert (await end_of(engine, job_id)).cause == Stopped(ME, SIGKILL, Killed(SIGKILL))


async def test_unknown_and_malformed_ids_are_told_apart(engine: Engine) -> None:
    with pytest.raises(JobNotFound):
        await engine.stop("00000000-0000-4000-8000-000000000000", ME, 0)
    for malformed in ("", "x", "../../etc", "00000000000040008000000000000000"):
        with pytest.raises(JobIdMalformed):
            await engine.stop(malformed, ME, 0)
