"""Order and completeness, with real programs, real pipes and readers that come at any time."""

import asyncio
import base64
import json
import tempfile
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.logs import ME, Log, log_events, program, read_log, run, shell
from tests.waiting import wait_unlocked
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import InvalidArgument, SpoolCorrupt
from workerd.engine.folder import JobFolder
from workerd.engine.job import JobEnd, Stream
from workerd.engine.reader import Output
from workerd.engine.record import RECORD_SIZE

WRITES = st.lists(
    st.tuples(st.sampled_from(Stream), st.binary(min_size=1, max_size=40) | st.binary(min_size=4000, max_size=9000)),
    max_size=30,
)
READERS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.sets(st.sampled_from(Stream), min_size=1)), max_size=5
)


@settings(max_examples=40, deadline=None)
@given(WRITES, READERS)
def test_every_reader_gets_what_the_program_wrote(
    writes: list[tuple[Stream, bytes]], readers: list[tuple[float, float, set[Stream]]]
) -> None:
    asyncio.run(_read_what_is_written(writes, readers))


async def _read_what_is_written(
    writes: list[tuple[Stream, bytes]], readers: list[tuple[float, float, set[Stream]]]
) -> None:
    """Each reader begins when the log has come to a part of its size, at a part of what it has come to."""
    total = sum(len(data) for _, data in writes)
    with tempfile.TemporaryDirectory() as directory:
        script = f"{directory}/script"
        with open(script, "w") as file:
            file.write(json.dumps([[int(stream), base64.b64encode(data).decode()] for stream, data in writes]))
        async with Engine(Path(directory, "state")) as engine, asyncio.TaskGroup() as tasks:
            job_id = await engine.spawn(program("write", script))
            others = [
                tasks.create_task(_read_later(engine, job_id, int(when * total), where, frozenset(streams)))
                for when, where, streams in readers
            ]
            first = await read_log(engine, job_id)
            for stream in Stream:
                assert first.data(stream) == b"".join(data for written, data in writes if written is stream)
            reference = _bytes_of(first)
            assert [offset for offset, _, _ in reference] == list(range(total)), "the offsets are not contiguous"
            assert first.end is not None
            assert first.end.stdout.xxh3_128 == xxhash.xxh3_128_hexdigest(first.stdout)
            assert first.end.stderr.xxh3_128 == xxhash.xxh3_128_hexdigest(first.stderr)
            for other, (_, _, streams) in zip(others, readers, strict=True):
                start, log = await other
                assert log.end == first.end
                assert _bytes_of(log) == [byte for byte in reference[start:] if byte[1] in streams]


async def _read_later(
    engine: Engine, job_id: str, when: int, where: float, streams: frozenset[Stream]
) -> tuple[int, Log]:
    size = 0
    async for event in log_events(engine, job_id):
        if isinstance(event, Output):
            size = event.offset + len(event.data)
        if size >= when or isinstance(event, JobEnd):
            break
    start = int(where * size)
    return start, await read_log(engine, job_id, Start(offset=start), streams)


def _bytes_of(log: Log) -> list[tuple[int, Stream, int]]:
    """Every byte with its offset and its stream, checking on the way that offsets only grow."""
    result: list[tuple[int, Stream, int]] = []
    for event in log.events:
        assert isinstance(event, Output)
        assert not result or event.offset > result[-1][0]
        result += [(event.offset + position, event.stream, byte) for position, byte in enumerate(event.data)]
    return result


async def test_the_last_line_before_the_exit_is_always_there(engine: Engine) -> None:
    """500 jobs that print their last line and are gone; none of the lines is."""

    async def one(number: int) -> None:
        log = await run(engine, shell(f"echo first; echo last of {number} >&2; echo last of {number}"))
        assert log.stdout == b"first\nlast of %d\n" % number
        assert log.stderr == b"last of %d\n" % number

    for start in range(0, 500, 20):
        await asyncio.gather(*(one(number) for number in range(start, start + 20)))


async def test_a_job_fills_no_pipe_while_nobody_reads(engine: Engine) -> None:
    log = await run(engine, shell("head -c 3000000 /dev/zero; echo done >&2"))
    assert (len(log.stdout), log.stderr) == (3_000_000, b"done\n")


async def test_a_hundred_followers_get_the_same(engine: Engine) -> None:
    job_id = await engine.spawn(shell("for i in $(seq 300); do echo out $i; echo err $i >&2; done"))
    logs = await asyncio.gather(*(read_log(engine, job_id) for _ in range(100)))
    assert logs[0].stdout == b"".join(b"out %d\n" % number for number in range(1, 301))
    reference = _bytes_of(logs[0])
    assert all(_bytes_of(log) == reference for log in logs)


async def test_without_follow_a_running_jobs_log_ends_where_it_is(engine: Engine) -> None:
    job_id = await engine.spawn(shell("echo ready; exec sleep 1000"))
    async for event in log_events(engine, job_id):
        assert isinstance(event, Output)
        break
    events = [event async for event in log_events(engine, job_id, follow=False)]
    assert [event.data for event in events if isinstance(event, Output)] == [b"ready\n"]
    assert not any(isinstance(event, JobEnd) for event in events)
    await engine.stop(job_id, ME, 0)


async def test_without_follow_an_ended_jobs_log_has_its_end(engine: Engine) -> None:
    job_id = await engine.spawn(shell("echo over"))
    await read_log(engine, job_id)
    events = [event async for event in log_events(engine, job_id, follow=False)]
    assert isinstance(events[-1], JobEnd)


async def test_the_last_bytes_can_be_asked_for(engine: Engine) -> None:
    job_id = await engine.spawn(shell("printf 0123456789"))
    await read_log(engine, job_id)
    assert (await read_log(engine, job_id, Start(last=3))).stdout == b"789"
    assert (await read_log(engine, job_id, Start(last=99))).stdout == b"0123456789"
    assert (await read_log(engine, job_id, Start(last=0))).stdout == b""


async def test_an_offset_beyond_the_end_is_refused(engine: Engine) -> None:
    job_id = await engine.spawn(shell("printf 0123456789"))
    await read_log(engine, job_id)
    assert (await read_log(engine, job_id, Start(offset=10))).stdout == b""
    with pytest.raises(InvalidArgument):
        await read_log(engine, job_id, Start(offset=11))


async def test_binary_output_is_not_altered(engine: Engine) -> None:
    everything = bytes(range(256)) * 8
    octal = "".join(f"\\{byte:03o}" for byte in everything)
    log = await run(engine, shell(f"printf '{octal}'"))
    assert log.stdout == everything


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_damaged_log_is_an_error_wherever_the_damage_is(tmp_path: Path, number: int, *, follow: bool) -> None:
    async with Engine(tmp_path) as engine:
        much = "head -c 3000 /dev/zero"  # more than the journal keeps a copy of
        job_id = await engine.spawn(shell(f"{much}; sleep 0.2; {much} >&2; sleep 0.2; {much}"))
        await read_log(engine, job_id)
    folder = JobFolder(tmp_path / "jobs" / job_id)
    wait_unlocked(folder)  # its supervisor closes the log as it leaves, which would wake readers
    data = bytearray(folder.index.read_bytes())
    data[number * RECORD_SIZE + 9] ^= 1
    folder.index.write_bytes(data)
    async with Engine(tmp_path) as engine, asyncio.timeout(10):  # nobody has watched this log here, whose end may wake
        with pytest.raises(SpoolCorrupt):
            async for _ in log_events(engine, job_id, follow=follow):
                pass
