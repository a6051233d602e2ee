"""What a figure is: what is compared with what, what the outcome should be, and what it was."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from benchmarks.bench import Bench


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that a figure should keep.

    Attributes:
        number: in the figure's unit, or in multiples of the peer's median.
        of_peer: which of the two.
    """

    relation: Literal["≥", "≤"]
    number: float
    of_peer: bool = False

    def is_met(self, ours: float, peer: float | None) -> bool | None:
        """Tell whether it is kept; None when there is no peer to compare with."""
        if self.of_peer and peer is None:
            return None
        bound = self.number * peer if self.of_peer and peer is not None else self.number
        return ours >= bound if self.relation == "≥" else ours <= bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row of the table.

    Attributes:
        ours: what is measured, as a command line or in words.
        peer: what it is compared with; empty when the goal is in the unit alone.
    """

    name: str
    ours: str
    peer: str = ""
    unit: str
    goals: tuple[Goal, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What one run gave.

    Attributes:
        values: one for each figure of the benchmark, in its unit.
        cpu_seconds: of all processes that took part; None where the kernel does not tell.
    """

    values: tuple[float, ...]
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Sides:
    """What is run in turn; no peer when the goals are in the unit alone."""

    ours: Callable[[], Reading]
    peer: Callable[[], Reading] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Something that is measured, and the figures that it gives.

    Attributes:
        rounds: how often each side runs unless somebody asks for another number.
        prepare: sets up what both sides need for as long as its context lasts.
        over_ssh: whether the peer is ssh, without which it is left out.
    """

    name: str
    figures: tuple[Figure, ...]
    rounds: int
    prepare: Callable[[Bench], AbstractContextManager[Sides]]
    over_ssh: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    """What the runs of one side gave, in the figure's unit, and the median of their CPU seconds."""

    values: tuple[float, ...]
    cpu_seconds: float | None

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A figure with what was measured.

    Attributes:
        not_measured: why there is nothing of the peer's; empty when there is, or when there is no peer.
    """

    figure: Figure
    ours: Spread
    peer: Spread | None
    not_measured: str = ""

    @property
    def ratio(self) -> float | None:
        """Our median as a multiple of the peer's; None when the peer was not measured."""
        return self.ours.median / self.peer.median if self.peer is not None else None

    @property
    def met(self) -> bool | None:
        """Whether every goal is met; None when there is none, or when it takes the peer to tell."""
        peer = self.peer.median if self.peer is not None else None
        verdicts = [goal.is_met(self.ours.median, peer) for goal in self.figure.goals]
        if False in verdicts:
            return False
        return None if None in verdicts or not verdicts else True


def spread(readings: Sequence[Reading], number: int) -> Spread:
    """Pick one figure's values out of a side's runs, of which there is one at least."""
    cpu = [reading.cpu_seconds for reading in readings if reading.cpu_seconds is not None]
    values = tuple(reading.values[number] for reading in readings)
    return Spread(values, statistics.median(cpu) if cpu else None)
