"""Checking a log while it comes in: nothing missing, nothing doubled, nothing altered."""

from collections.abc import Collection

import xxhash
from worker_api.worker.v1 import Gap, JobEnd, Stream

from workerctl.errors import LogDamaged
from workerctl.events import Output


class LogCheck:
    """Follows the events of one log and compares them with what its end says.

    Count and continuity are checked from wherever the log was begun; digests need a stream from its first byte.

    Args:
        streams: the streams that were asked for.
        from_start: whether the log was begun at offset zero.

    Attributes:
        received: whether any output has come.
    """

    def __init__(self, streams: Collection[Stream], *, from_start: bool) -> None:
        self.received = False
        self._next = dict.fromkeys(streams, 0) if from_start else {}
        self._digests = {stream: xxhash.xxh3_128() for stream in self._next}

    def output(self, output: Output) -> None:
        """Take in some bytes.

        Raises:
            LogDamaged: bytes before them are missing, or came twice.
        """
        self.received = True
        stream, offset = output.stream, output.stream_offset_bytes
        expected = self._next.get(stream, offset)
        if offset != expected:
            raise LogDamaged(f"the log is damaged: {stream.name} went on at byte {offset} instead of {expected}")
        if stream in self._digests:
            self._digests[stream].update(output.data)
        self._next[stream] = offset + len(output.data)

    def gap(self, gap: Gap) -> str:
        """Take in that bytes are missing, and say so for people: the digests cannot be checked any more."""
        self._next.clear()  # how much of it was of which stream nobody tells
        self._digests.clear()
        return (
            f"bytes {gap.from_offset_bytes} to {gap.to_offset_bytes} of the output are not kept any more:"
            " the digests cannot be checked"
        )

    def end(self, end: JobEnd) -> None:
        """Compare with what the whole was.

        Raises:
            LogDamaged: a count or a digest differs.
        """
        for summary in end.streams:
            if summary.stream not in self._next:
                continue  # not asked for, or nothing came since the start or the last gap
            name, received = summary.stream.name, self._next[summary.stream]
            if received != summary.size_bytes:
                raise LogDamaged(f"the log is damaged: {name} ended at byte {received} instead of {summary.size_bytes}")
            digest = self._digests.get(summary.stream)
            if digest is not None and summary.xxh3_128 and digest.digest() != summary.xxh3_128:
                raise LogDamaged(f"the log is damaged: the digest of {name} is not that of what the job wrote")
