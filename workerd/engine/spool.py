"""The writing side of a log: what a supervisor appends output to."""

import os
import time
from collections.abc import Iterator

import xxhash

from workerd.engine.folder import JobFolder
from workerd.engine.job import FORMAT_VERSION, Stream, StreamSummary
from workerd.engine.record import MAX_LENGTH, Kind, Record, pack, pack_fields

_NEW = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class SpoolWriter:
    """Appends the output of one job, in the order of the calls. There is one writer for a log, ever."""

    def __init__(self, folder: JobFolder) -> None:
        self.size = 0
        self._output = os.open(folder.output, _NEW, 0o600)
        self._index = os.open(folder.index, _NEW, 0o600)
        self._sizes = dict.fromkeys(Stream, 0)
        self._digests = {stream: xxhash.xxh3_128() for stream in Stream}
        self._time_ns = 0
        self._write_index(pack(Record(Kind.HEADER, None, FORMAT_VERSION, 0, 0, self._now())))

    def append(self, stream: Stream, data: memoryview) -> None:
        """Append what was read from one stream: first the bytes, then the record that says so."""
        length = len(data)
        if length > MAX_LENGTH:
            raise ValueError(f"{length} bytes do not fit one record")
        time_ns = self._now()
        _write_all(self._output, data)
        self._write_index(pack_fields(Kind.OUTPUT, stream, self.size, length, self._sizes[stream], time_ns))
        self._digests[stream].update(data)
        self._sizes[stream] += length
        self.size += length

    def summary(self, stream: Stream) -> StreamSummary:
        """Tell what one stream has amounted to so far."""
        return StreamSummary(self._sizes[stream], self._digests[stream].hexdigest())

    def end(self) -> None:
        """Say that nothing will follow, and close the files."""
        self._write_index(pack(Record(Kind.END, None, self.size, 0, 0, self._now())))
        self.close()

    def close(self) -> None:
        """Close the files without saying that the log is complete."""
        os.close(self._output)
        os.close(self._index)

    def _now(self) -> int:
        """Read the clock, never backwards within one log."""
        self._time_ns = max(self._time_ns, time.time_ns())
        return self._time_ns

    def _write_index(self, data: bytes) -> None:
        _write_all(self._index, memoryview(data))


def summarize(output: int, records: Iterator[Record]) -> dict[Stream, StreamSummary]:
    """Digest a log that its writer could not finish.

    Args:
        output: a descriptor of the log's output file.
        records: the log's output records, in order.
    """
    sizes = dict.fromkeys(Stream, 0)
    digests = {stream: xxhash.xxh3_128() for stream in Stream}
    for record in records:
        if record.stream is not None:
            digests[record.stream].update(os.pread(output, record.length, record.offset))
            sizes[record.stream] += record.length
    return {stream: StreamSummary(sizes[stream], digests[stream].hexdigest()) for stream in Stream}


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
