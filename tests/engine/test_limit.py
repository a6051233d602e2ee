"""A job that prints more than its log may take."""

import errno
import os
import re
import signal
from pathlib import Path

import pytest
import xxhash

from tests.daemon import Daemon, end_jobs
from tests.engine.logs import log_events, read_log, run, shell
from tests.small_disk import small_disk
from workerd.engine import linux
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import InvalidArgument, StorageUnfit
from workerd.engine.job import Lost, Stream, StreamSummary
from workerd.engine.reader import Gap, Output
from workerd.engine.storage import MIN_LOG_BYTES, Storage
from workerd.engine.tree import parent_of

PRINT = "seq 3000000; echo end >&2"
PRINTED = b"".join(b"%d\n" % number for number in range(1, 3_000_001))


async def test_the_newest_output_is_kept_and_the_rest_is_a_gap(engine: Engine) -> None:
    job_id = await engine.spawn(shell(PRINT, max_log_bytes=MIN_LOG_BYTES))
    log = await read_log(engine, job_id)  # this reader may keep up, or be overtaken
    gaps = [event for event in log.events if isinstance(event, Gap)]
    assert len(log.stdout) + len(log.stderr) + sum(gap.end - gap.start for gap in gaps) == len(PRINTED) + 4
    job = engine.status(job_id)
    assert job.kept_from > 0
    assert job.stdout_bytes == len(PRINTED)
    assert job.status.end is not None
    assert job.status.end.stdout.xxh3_128 == xxhash.xxh3_128_hexdigest(PRINTED), "the digest covers what has gone, too"

    late = await read_log(engine, job_id)
    assert late.events[0] == Gap(0, job.kept_from)
    assert PRINTED.endswith(late.stdout)
    assert len(late.stdout) == len(PRINTED) - job.kept_from
    assert late.stderr == b"end\n"
    kept = await read_log(engine, job_id, Start(offset=job.kept_from))
    assert not any(isinstance(event, Gap) for event in kept.events)
    assert kept.stdout == late.stdout


async def test_a_lost_job_over_its_limit_keeps_what_it_had(engine: Engine) -> None:
    job_id = await engine.spawn(shell(f"{PRINT}; exec sleep 1000", max_log_bytes=MIN_LOG_BYTES))
    async for event in log_events(engine, job_id, streams={Stream.STDERR}):
        if isinstance(event, Output):
            break
    supervisor = parent_of(engine.status(job_id).status.pid)
    assert supervisor
    os.kill(supervisor, signal.SIGKILL)
    log = await read_log(engine, job_id)
    assert log.end is not None
    assert isinstance(log.end.cause, Lost)
    assert log.events[0] == Gap(0, engine.status(job_id).kept_from)
    assert PRINTED.endswith(log.stdout)
    assert log.stderr == b"end\n"
    assert log.end.stdout == StreamSummary(len(PRINTED), ""), "nobody can tell the digest of what has gone"


async def test_a_file_system_that_cannot_release_parts_of_a_file_is_refused_unless_logs_have_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(linux, "punch_hole", refuse)
    with pytest.raises(StorageUnfit, match=re.escape(str(tmp_path))):
        async with Engine(tmp_path):
            pass
    async with Engine(tmp_path, Storage(max_log_bytes=0)) as engine:
        assert (await run(engine, shell("echo hi"))).stdout == b"hi\n"


async def test_a_limit_that_the_file_system_cannot_keep_is_refused_at_spawn(tmp_path: Path) -> None:
    """Ramfs releases no part of a file (EOPNOTSUPP); a supervisor would find that out in the middle of a job."""
    with small_disk(tmp_path / "disk", 0, 0, "ramfs"):
        state = tmp_path / "disk" / "state"
        try:
            async with Engine(state, Storage(max_log_bytes=0)) as engine:
                for _ in range(2):
                    with pytest.raises(InvalidArgument, match="max_log_bytes cannot be kept to: the file system"):
                        await engine.spawn(shell("true", max_log_bytes=MIN_LOG_BYTES))
                assert list((state / "jobs").iterdir()) == []
                assert (await run(engine, shell("echo hi"))).stdout == b"hi\n"
        finally:
            end_jobs(state)


async def test_the_file_system_is_asked_once_whether_it_can_keep_limits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def ask(directory: Path) -> bool:
        asked.append(directory)
        return True

    monkeypatch.setattr("workerd.engine.spawner.can_limit_logs", ask)
    await run(engine, shell("true"))
    assert asked == []
    for _ in range(2):
        await run(engine, shell("true", max_log_bytes=MIN_LOG_BYTES))
    assert len(asked) == 1


async def test_no_job_may_ask_for_more_than_is_allowed(tmp_path: Path) -> None:
    async with Engine(tmp_path, Storage(max_log_bytes=2 * MIN_LOG_BYTES)) as engine:
        for wrong in (2 * MIN_LOG_BYTES + 1, MIN_LOG_BYTES - 1):
            with pytest.raises(InvalidArgument, match="max_log_bytes"):
                await engine.spawn(shell("true", max_log_bytes=wrong))
        for right in (0, MIN_LOG_BYTES, 2 * MIN_LOG_BYTES):
            await run(engine, shell("true", max_log_bytes=right))


def test_workerctl_says_what_it_could_not_check(daemon: Daemon) -> None:
    option = ("--max-log-bytes", str(MIN_LOG_BYTES))
    job_id = daemon.workerctl("spawn", *option, "--", "sh", "-c", PRINT).stdout.decode().strip()
    daemon.workerctl("stream-log", "--uuid", job_id)  # until it has ended
    result = daemon.workerctl("stream-log", "--past-events", "--uuid", job_id)
    assert result.returncode == 0, result.stderr
    assert PRINTED.endswith(result.stdout)
    assert MIN_LOG_BYTES // 2 < len(result.stdout) <= MIN_LOG_BYTES
    assert b"are not kept any more: the digests cannot be checked" in result.stderr
    assert f"from byte {len(PRINTED) - len(result.stdout)} of the output on" in daemon.workerctl(
        "status", "--uuid", job_id
    ).stdout.decode().replace("  ", " ")
