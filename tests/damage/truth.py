"""What is true of each job: told by an undamaged copy, and compared with what the job's script says."""

from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.damage.faces import End, Event, Face, Hole, Piece
from tests.damage.jobs import Ending, Script
from workerd.engine.job import Cause, Exited, JobEnd, Killed, Lost, Stopped, Stream, TimedOut, User


@dataclass(slots=True)
class KnownLog:
    """A whole log, in order.

    Attributes:
        kept_from: the offset of the first byte that was not released.
        data: all bytes from there on.
        end: the value of the log's end; None while the job runs.
    """

    kept_from: int = 0
    data: bytes = b""
    pieces: list[Piece] = field(default_factory=list)
    end: Any = None

    @classmethod
    def of(cls, events: list[Event]) -> "KnownLog":
        """Make the log that one whole reading told."""
        log = cls()
        for event in events:
            match event:
                case Hole(start, end):
                    assert start == 0 and not log.pieces, f"a hole from {start} to {end} where none should be"
                    log.kept_from = end
                case Piece():
                    assert event.offset == log.size, f"bytes at {event.offset} follow {log.size}"
                    log.pieces.append(event)
                    log.data += event.data
                case End(value):
                    log.end = value
        return log

    @property
    def size(self) -> int:
        """The number of bytes that were ever written."""
        return self.kept_from + len(self.data)

    def sizes(self) -> tuple[int, int]:
        """Return the number of bytes in each stream."""
        return self._size_of(Stream.STDOUT), self._size_of(Stream.STDERR)

    def _size_of(self, stream: Stream) -> int:
        own = [piece for piece in self.pieces if piece.stream == stream]
        return own[-1].stream_offset + len(own[-1].data) if own else 0

    def next_of(self, position: int, streams: Collection[Stream]) -> int:
        """Return the offset of the first byte of some streams at a position or after it; the size if there is none."""
        for piece in self.pieces[self._piece_at(position) :]:
            if piece.stream in streams and position < piece.offset + len(piece.data):
                return max(position, piece.offset)
        return self.size

    def problem_with(self, piece: Piece) -> str:
        """Return what is wrong with bytes that were read; empty when nothing is."""
        begin, end = piece.offset - self.kept_from, piece.offset - self.kept_from + len(piece.data)
        if begin < 0 or end > len(self.data):
            return f"bytes {piece.offset} to {piece.offset + len(piece.data)} of {self.size}"
        if piece.data != self.data[begin:end]:
            return f"wrong bytes in {piece.offset} to {piece.offset + len(piece.data)}"
        known = self.pieces[self._piece_at(piece.offset)]
        if (piece.stream, piece.stream_offset - known.stream_offset) != (known.stream, piece.offset - known.offset):
            return f"byte {piece.offset} is said to be byte {piece.stream_offset} of stream {piece.stream}"
        if piece.offset == known.offset and known.time_ns and piece.time_ns != known.time_ns:
            return f"byte {piece.offset} is said to be of {piece.time_ns} instead of {known.time_ns}"
        if not self.pieces[0].time_ns <= piece.time_ns:
            return f"byte {piece.offset} is said to be of {piece.time_ns}"
        if any(each.stream != piece.stream for each in self._pieces_in(piece.offset, piece.offset + len(piece.data))):
            return f"bytes {piece.offset} to {piece.offset + len(piece.data)} are of both streams"
        return ""

    def _piece_at(self, offset: int) -> int:
        return max(0, bisect_right(self.pieces, offset, key=lambda piece: piece.offset) - 1)

    def _pieces_in(self, start: int, end: int) -> Iterator[Piece]:
        for piece in self.pieces[self._piece_at(start) :]:
            if piece.offset >= end:
                return
            yield piece


@dataclass(slots=True)
class Truth:
    """What one kind of face tells of one undamaged job.

    Attributes:
        early: equal to what else may be told of the job while it runs if it is damaged: nobody can know that the end of
            its index is missing before more is written behind it.
    """

    label: str
    id: str
    owner: User
    row: object
    status: Any
    log: KnownLog
    rights: frozenset[tuple[str, str]]
    early: object = None


async def ask_for_truth(face: Face, label: str, job_id: str, owner: User, row: object) -> Truth:
    """Ask a face for everything about an undamaged job that has ended."""
    events = [event async for event in face.read(job_id, owner, 0, follow=True)]
    status, rights = await face.status(job_id, owner), await face.rights(job_id, owner)
    return Truth(label, job_id, owner, row, status, KnownLog.of(events), rights)


def check_against_script(truth: Truth, script: Script) -> None:
    """Check that an undamaged job is what its script says."""
    log = truth.log
    streams = {stream: script.printed(stream) for stream in Stream}
    for piece in log.pieces:
        printed = streams[Stream(piece.stream)]
        assert printed[piece.stream_offset : piece.stream_offset + len(piece.data)] == piece.data, script.label
    expected = tuple(map(len, streams.values()))
    status = truth.status
    assert (status.stdout_bytes, status.stderr_bytes) == expected == log.sizes(), (script.label, expected, log.sizes())
    assert (log.kept_from > 0) == script.limited, script.label
    if script.paced:
        assert [(p.stream, p.data) for p in log.pieces] == [*script.steps], script.label
    if isinstance(log.end, JobEnd):
        assert _is_as_said(log.end.cause, script), (script.label, log.end)
    assert sorted(right for _, right in truth.rights) == sorted(script.rights), script.label


def _is_as_said(cause: Cause, script: Script) -> bool:
    match cause:
        case Exited(code=code):
            return (script.ending, script.value) == (Ending.EXIT, code)
        case Killed(signal=number):
            return (script.ending, script.value) == (Ending.KILLED, number)
        case TimedOut():
            return script.ending is Ending.TIMED_OUT
        case Stopped():
            return script.ending is Ending.STOPPED
        case Lost():
            return script.ending is Ending.LOST
