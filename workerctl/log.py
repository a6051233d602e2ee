"""Checking a log while it comes in: nothing missing, nothing doubled, nothing altered."""

import xxhash
from worker_api.worker.v1 import JobEnd, Output, Stream

from workerctl.errors import LogDamaged


class LogCheck:
    """Follows the events of one log and compares them with what its end says.

    Count and continuity are checked from wherever the log was begun; digests need a stream from its first byte.
    """

    def __init__(self) -> None:
        self._next: dict[Stream, int] = {}
        self._digests: dict[Stream, xxhash.xxh3_128] = {}
        self.gap = False

    def output(self, output: Output) -> None:
        """Take in some bytes.

        Raises:
            LogDamaged: bytes before them are missing, or came twice.
        """
        stream, offset = output.stream, output.stream_offset_bytes
        expected = self._next.get(stream)
        if expected is None and offset == 0:
            self._digests[stream] = xxhash.xxh3_128()
        elif expected is not None and offset != expected and not self.gap:
            raise LogDamaged(f"the log is damaged: {stream.name} went on at byte {offset} instead of {expected}")
        if stream in self._digests:
            self._digests[stream].update(output.data)
        self._next[stream] = offset + len(output.data)

    def end(self, end: JobEnd) -> None:
        """Compare with what the whole was.

        Raises:
            LogDamaged: a count or a digest differs.
        """
        for summary in end.streams:
            received = self._next.get(summary.stream)
            if received is None:
                continue  # none of it was asked for, or nothing came since
            name = summary.stream.name
            if received != summary.size_bytes:
                raise LogDamaged(f"the log is damaged: {name} ended at byte {received} instead of {summary.size_bytes}")
            digest = self._digests.get(summary.stream)
            if digest is not None and not self.gap and digest.digest() != summary.xxh3_128:
                raise LogDamaged(f"the log is damaged: the digest of {name} is not that of what the job wrote")
