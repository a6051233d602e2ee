"""What clients were told of jobs, and how much had been recorded of the disk by then."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import xxhash

from tests.power.views import End

Bursts = Callable[[], Iterator[tuple[int, bytes]]]


@dataclass(slots=True)
class Story:
    """One job, as clients were told of it.

    Sizes are those of the record log when it was told, or soon after; times are nanoseconds since the epoch.

    Attributes:
        kind: which of the scene's jobs it is, for people.
        bursts: returns what its program prints, as long as anybody takes it.
        limited: whether the beginning of its log may have been released.
        spawned_at: the size when its id was told.
        ended_at: the size when its end was told.
        shared_at: the size when it was told to be shared; None if it never was.
        shared_with: the id of the user that it is shared with.
        end: how it ended, after all; a time of zero, or None, was not told yet.
        arrivals: for each piece of output that a follower got, the offset behind it and when its first byte arrived.
        printed: all that its program has printed, by stream.
    """

    kind: str
    bursts: Bursts
    limited: bool = False
    id: str = ""
    spawned_at: int = 0
    ended_at: int = 0
    shared_at: int | None = None
    shared_with: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    end: End | None = None
    arrivals: list[tuple[int, int]] = field(default_factory=list)
    printed: dict[int, bytes] = field(default_factory=dict)

    def told_at(self) -> Iterator[int]:
        """Return the sizes at which something was told."""
        yield self.spawned_at
        yield self.ended_at
        if self.shared_at is not None:
            yield self.shared_at

    def close(self) -> None:
        """Write down all that the program has printed, now that it has ended."""
        assert self.end is not None, f"the end of {self.kind} {self.id} was not told"
        told = {1: self.end.stdout, 2: self.end.stderr}
        printed = {1: bytearray(), 2: bytearray()}
        for stream, data in self.bursts():
            if all(len(printed[each]) >= told[each][0] for each in told):
                break
            printed[stream] += data
        self.printed = {each: bytes(printed[each][: told[each][0]]) for each in told}
        for each, (_, digest) in told.items():
            assert xxhash.xxh3_128_hexdigest(self.printed[each]) == digest, f"{self.kind} {self.id} was told wrong"
