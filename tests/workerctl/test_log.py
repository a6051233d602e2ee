"""The client notices a log that is not what the job wrote."""

import pytest
import xxhash
from worker_api.worker.v1 import Gap, JobEnd, Stream, StreamSummary

from workerctl.errors import LogDamaged
from workerctl.events import Output
from workerctl.log import LogCheck

OUT, ERR = Stream.STDOUT, Stream.STDERR


def output(stream: Stream, offset: int, data: bytes) -> Output:
    return Output(0, stream, 0, offset, data)


def end(out: bytes, err: bytes = b"") -> JobEnd:
    summaries = [(OUT, out), (ERR, err)]
    return JobEnd(
        streams=[
            StreamSummary(stream=stream, size_bytes=len(data), xxh3_128=xxhash.xxh3_128_digest(data))
            for stream, data in summaries
        ]
    )


def test_a_whole_log_passes() -> None:
    check = LogCheck([OUT, ERR], from_start=True)
    for event in (output(OUT, 0, b"ab"), output(ERR, 0, b"x"), output(OUT, 2, b"c")):
        check.output(event)
    check.end(end(b"abc", b"x"))


def test_a_log_begun_later_passes() -> None:
    check = LogCheck([OUT], from_start=False)
    check.output(output(OUT, 2, b"c"))
    check.end(end(b"abc", b"not asked for"))


def test_a_log_of_which_nothing_came_since_passes() -> None:
    LogCheck([OUT], from_start=False).end(end(b"abc"))


@pytest.mark.parametrize(
    ("events", "sent"),
    [
        ([], b"abc"),
        ([output(OUT, 0, b"ab")], b"abc"),
        ([output(OUT, 1, b"bc")], b"abc"),
        ([output(OUT, 0, b"a"), output(OUT, 2, b"c")], b"abc"),
        ([output(OUT, 0, b"ab"), output(OUT, 1, b"bc")], b"abc"),
        ([output(OUT, 0, b"abx")], b"abc"),
    ],
    ids=["all missing", "end missing", "start missing", "middle missing", "doubled", "altered"],
)
def test_a_damaged_log_is_noticed(events: list[Output], sent: bytes) -> None:
    check = LogCheck([OUT, ERR], from_start=True)
    with pytest.raises(LogDamaged, match="STDOUT"):  # noqa: PT012
        for event in events:
            check.output(event)
        check.end(end(sent))


def test_after_a_gap_nothing_is_claimed() -> None:
    check = LogCheck([OUT], from_start=True)
    assert "0 to 2" in check.gap(Gap(from_offset_bytes=0, to_offset_bytes=2))
    check.output(output(OUT, 2, b"c"))
    check.end(end(b"abc"))
