"""Where the power is cut, and what is on the disk then."""

import enum
import itertools
import os
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.power.disk import copy_image
from tests.power.recorder import Kind, Record, Recording


class Variant(enum.StrEnum):
    """What a disk has done with the writes after its last flush: all are legal, as only a flush promises anything."""

    PREFIX = "prefix"
    DROPPED = "dropped"
    REORDERED = "reordered"


@dataclass(frozen=True, slots=True)
class Cut:
    """A place to cut the power at.

    Attributes:
        count: how many records had taken effect.
        position: where they end in the record log.
        since_ns: when the last record took effect, nanoseconds since the epoch.
        time_ns: the latest time that it can have been: that of the next record.
        seed: decides which writes are dropped, and what is read afterwards.
    """

    count: int
    position: int
    since_ns: int
    time_ns: int
    variant: Variant
    seed: int

    def __str__(self) -> str:
        return f"record {self.count} ({self.variant})"


def choose_cuts(recording: Recording, told: Collection[int], first: int, count: int, seed: int) -> list[Cut]:
    """Choose places to cut at, in order: half of them right after a client was told something, half anywhere.

    Args:
        told: the sizes of the record log at which a client was told something.
        first: the size of the record log before which nothing is cut.
        count: how many.
    """
    source = random.Random(seed)
    records = recording.records
    lowest = max(1, recording.count_before(first))
    soonest = sorted({recording.count_before(size - 1) + 1 for size in told if size > first})
    soonest = [number for number in soonest if number < len(records)]
    chosen = source.sample(soonest, min(count // 2, len(soonest)))
    chosen += source.choices(range(lowest, len(records)), k=count - len(chosen))
    variants = itertools.cycle(Variant)
    source.shuffle(chosen)
    cuts = [
        Cut(
            number,
            records[number - 1].end,
            records[number - 1].time_ns,
            records[number].time_ns,
            variant,
            source.getrandbits(32),
        )
        for number, variant in zip(chosen, variants, strict=False)
    ]
    return sorted(cuts, key=lambda cut: cut.count)


class Replay:
    """Makes the disk as it is after a cut. Cuts must come in order.

    Args:
        base: the image as it was before the first record; it is changed.
    """

    def __init__(self, recording: Recording, base: Path) -> None:
        self._recording = recording
        self._base = base
        self._done = 0  # how many records the base has: all up to a flush

    def make(self, cut: Cut, image: Path) -> None:
        """Make the image of a cut."""
        records = self._recording.records
        flushed = next((n for n in range(cut.count, self._done, -1) if records[n - 1].kind is Kind.FLUSH), self._done)
        self._apply(self._base, list(records[self._done : flushed]))
        self._done = flushed
        copy_image(self._base, image)
        self._apply(image, choose_writes(list(records[flushed : cut.count]), cut))

    def finish(self) -> None:
        """Apply all records to the base."""
        self._apply(self._base, list(self._recording.records[self._done :]))
        self._done = len(self._recording.records)

    def _apply(self, image: Path, records: list[Record]) -> None:
        descriptor = os.open(image, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for record in records:
                if record.kind is Kind.WRITE:
                    os.pwrite(descriptor, self._recording.data(record), record.offset)
        finally:
            os.close(descriptor)


def choose_writes(unflushed: list[Record], cut: Cut) -> list[Record]:
    """Choose what of the writes after the last flush reaches the disk, and in which order."""
    source = random.Random(cut.seed)
    match cut.variant:
        case Variant.PREFIX:
            return unflushed
        case Variant.DROPPED:
            share = source.random()
            return [record for record in unflushed if source.random() < share]
        case Variant.REORDERED:
            return source.sample(unflushed, source.randint(0, len(unflushed)))
