"""What one reader of a log got, compared with what the job wrote as it comes in."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from worker_api.worker.v1 import Gap, JobEnd, Stream

from workerctl.events import LogEvent, Output


class Record:
    """One reader's log.

    Args:
        expected: all that the job writes, by stream.
        both: whether both streams were asked for, so that every offset of the combined output is met.

    Attributes:
        received: the offset within each stream up to which bytes came; streams that none came from are missing.
        compared_bytes: how many bytes were looked at.
        position: the offset in the combined output up to which it came, where that is told.
        end: the end event, as a message or as JSON.
        problems: what was wrong, for people.
    """

    def __init__(self, expected: Mapping[Stream, bytes], *, both: bool = True) -> None:
        self.received: dict[Stream, int] = {}
        self.compared_bytes = 0
        self.end: JobEnd | dict[str, object] | None = None
        self.problems: list[str] = []
        self._expected = expected
        self._both = both
        self.position: int | None = None

    def event(self, event: LogEvent) -> None:
        """Take in an event."""
        match event:
            case Output():
                self.output(event.offset_bytes, event.stream, event.stream_offset_bytes, event.data)
            case Gap():
                self._complain(f"a gap: {event}")
            case JobEnd():
                self._take_end(event)

    def line(self, line: bytes) -> None:
        """Take in an event as `workerctl stream-log --stream-type raw` prints it."""
        event = json.loads(line)
        match event["event"]:
            case "output":
                text = event.get("text")
                data = base64.b64decode(event["data_base64"]) if text is None else text.encode()
                stream = Stream[event["stream"].upper()]
                self.output(event["offset_bytes"], stream, event["stream_offset_bytes"], data)
            case "end":
                self._take_end(event)
            case _:
                self._complain(f"a gap: {event}")

    def output(self, offset: int, stream: Stream, stream_offset: int, data: bytes) -> None:
        """Take in bytes of a log of both streams."""
        if self.position is not None and (offset < self.position or (offset > self.position and self._both)):
            self._complain(f"byte {offset} came after byte {self.position} of the combined output")
        self.position = offset + len(data)
        self.bytes_of(stream, stream_offset, data)

    def bytes_of(self, stream: Stream, stream_offset: int, data: bytes) -> None:
        """Take in bytes of one stream."""
        if self.end is not None:
            self._complain("output came after the end")
        if self.received.get(stream, stream_offset) != stream_offset:
            self._complain(f"{stream.name}: byte {stream_offset} came after byte {self.received[stream]}")
        self.received[stream] = stream_offset + len(data)
        if self._expected[stream][stream_offset : stream_offset + len(data)] != data:
            self._complain(f"{stream.name}: {len(data)} bytes at {stream_offset} are not those that the job wrote")
        self.compared_bytes += len(data)

    def file(self, stream: Stream, path: Path) -> None:
        """Take in what a reader wrote down of a stream from its beginning."""
        self.bytes_of(stream, 0, path.read_bytes())

    def _take_end(self, end: "JobEnd | dict[str, object]") -> None:
        if self.end is not None:
            self._complain("the end came twice")
        self.end = end

    def _complain(self, problem: str) -> None:
        if len(self.problems) < 5:
            self.problems.append(problem)
