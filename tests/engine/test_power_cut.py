"""What a power cut may leave of a job's files, and what becomes of the job.

Of each file everything up to some byte is there, and at least what was forced to the disk; the rest is missing, zero or
garbage, as a file system may leave it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.folders import Writes, Written, write_running
from tests.engine.logs import read_whole_log
from workerd.engine.job import JobEnd, Lost, Stream

Rest = Literal["missing", "zeros", "garbage"]
RESTS: tuple[Rest, ...] = ("missing", "zeros", "garbage")
FILES = ("journal", "index", "output")
WRITES = [(Stream.STDOUT, b"one"), (Stream.STDERR, b"two!"), (Stream.STDOUT, b"three"), (Stream.STDERR, b"4")]
SOME_WRITES = st.lists(st.tuples(st.sampled_from(Stream), st.binary(min_size=1, max_size=40)), max_size=6)
CUTS = st.fixed_dictionaries({name: st.tuples(st.floats(0, 1), st.sampled_from(RESTS)) for name in FILES})


def cut(path: Path, place: int, rest: Rest) -> None:
    """Leave the first bytes of a file, and the rest as a power cut may."""
    data = path.read_bytes()
    left = len(data) - place
    tails = {"missing": b"", "zeros": bytes(left), "garbage": bytes((17 * n + 113) % 256 for n in range(left))}
    path.write_bytes(data[:place] + tails[rest])


def cut_power(written: Written, cuts: dict[str, tuple[float, Rest]]) -> None:
    for name, (fraction, rest) in cuts.items():
        path = written.folder.path / name
        size = path.stat().st_size
        place = written.synced[name] + round(fraction * (size - written.synced[name]))
        cut(path, place, rest)


def combined(writes: Writes) -> bytes:
    return b"".join(data for _, data in writes)


def check_log(written: Written, writes: Writes) -> None:
    """See that the log is exactly this, from wherever it is read."""
    whole = combined(writes)
    for offset in range(len(whole) + 1):
        assert combined(read_whole_log(written.folder, offset)) == whole[offset:]
    for stream in Stream:
        got = combined([each for each in read_whole_log(written.folder) if each[0] is stream])
        assert got == combined([each for each in writes if each[0] is stream])


def end_of(written: Written) -> JobEnd:
    status = written.folder.read_status()
    assert status is not None and status.end is not None
    return status.end


def check_lost(written: Written, writes: Writes, synced: int) -> None:
    """See that a job was lost with a log that is a beginning of what it printed, and has all that was on the disk."""
    end = end_of(written)
    assert isinstance(end.cause, Lost)
    size = end.stdout.size_bytes + end.stderr.size_bytes
    kept = next(n for n in range(len(writes) + 1) if len(combined(writes[:n])) == size)
    assert kept >= synced
    check_log(written, writes[:kept])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Written]:
    with closing(write_running(tmp_path, WRITES)) as written:
        yield written


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_running_job_cut_at_any_byte_leaves_the_job_lost_with_what_checks(
    tmp_path: Path, name: str, rest: Rest
) -> None:
    probe = write_running(tmp_path / "probe", WRITES)
    size, first = (probe.folder.path / name).stat().st_size, probe.synced[name]
    probe.close()
    for place in range(first, size + 1):
        with closing(write_running(tmp_path / f"{place}", WRITES)) as written:
            cut(written.folder.path / name, place, rest)
            assert written.recover()
            check_lost(written, WRITES, synced=0)


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("name", ["index", "output"])
def test_an_end_that_was_told_outlives_a_cut_at_any_byte_of_the_log(tmp_path: Path, name: str, rest: Rest) -> None:
    size = None
    place = 0
    while size is None or place <= size:
        with closing(write_running(tmp_path / f"{place}", WRITES)) as written:
            end = written.end(in_tail=True)
            written.log.end()
            size = (written.folder.path / name).stat().st_size
            cut(written.folder.path / name, place, rest)
            assert not written.recover()
            assert end_of(written) == end
            check_log(written, WRITES)
        place += 1


@pytest.mark.parametrize("rest", RESTS)
def test_an_end_cut_at_any_byte_is_either_whole_or_the_job_is_lost(tmp_path: Path, rest: Rest) -> None:
    place, size, whole = -1, 0, 0
    while place <= size:
        with closing(write_running(tmp_path / f"{place}", WRITES)) as written:
            end = written.end(in_tail=True)
            size = written.folder.journal.stat().st_size
            place = max(place, written.synced["journal"])
            cut(written.folder.journal, place, rest)
            if written.recover():
                check_lost(written, WRITES, synced=0)
            else:
                whole += 1
                assert end_of(written) == end
                check_log(written, WRITES)
        place += 1
    assert whole == 1


@settings(max_examples=150, deadline=None)
@given(SOME_WRITES, SOME_WRITES, CUTS)
def test_a_running_job_keeps_what_was_on_the_disk_whatever_all_its_files_lose(
    before: list[tuple[Stream, bytes]], after: list[tuple[Stream, bytes]], cuts: dict[str, tuple[float, Rest]]
) -> None:
    with tempfile.TemporaryDirectory() as directory, closing(write_running(Path(directory), before)) as written:
        written.log.sync()
        written.sync("output", "index")
        for stream, data in after:
            written.log.append(stream, memoryview(data))
        cut_power(written, cuts)
        assert written.recover()
        check_lost(written, before + after, synced=len(before))


@settings(max_examples=150, deadline=None)
@given(SOME_WRITES, SOME_WRITES, CUTS, st.booleans(), st.booleans(), st.booleans())
def test_a_job_that_ended_keeps_its_end_if_it_was_told_whatever_all_its_files_lose(
    before: list[tuple[Stream, bytes]],
    after: list[tuple[Stream, bytes]],
    cuts: dict[str, tuple[float, Rest]],
    in_tail: bool,
    told: bool,
    end_is_in_log: bool,
) -> None:
    with tempfile.TemporaryDirectory() as directory, closing(write_running(Path(directory), before)) as written:
        written.log.sync()
        written.sync("output", "index")
        for stream, data in after:
            written.log.append(stream, memoryview(data))
        end = written.end(in_tail=in_tail)
        if told:
            written.sync("journal")
            if end_is_in_log:
                written.log.end()
        cut_power(written, cuts)
        if written.recover():
            assert not told
            check_lost(written, before + after, synced=len(before))
        else:
            assert end_of(written) == end
            check_log(written, before + after)
        again = {name: (written.folder.path / name).read_bytes() for name in FILES}
        assert not written.recover()
        assert {name: (written.folder.path / name).read_bytes() for name in FILES} == again
