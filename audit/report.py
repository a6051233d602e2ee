"""What a verification finds, and what keeps it from being made."""

from dataclasses import dataclass
from pathlib import Path

from audit.chain import Head


class AuditError(Exception):
    """A trail cannot be verified as was asked for. Its text is one line for people."""


class TrailMissing(AuditError):
    """There is no trail in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"there is no audit trail in {folder}: give the state directory of the daemon that is meant")


class LineNotKept(AuditError):
    """A line to begin at, or to compare with, is not there, and nothing is wrong with that."""

    def __init__(self, seq: int, first: int, last: int) -> None:
        super().__init__(f"there is no line {seq} in this trail: give one from {first} to {last}")


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place at which a trail is not as it was written.

    Attributes:
        file: its name.
        line: counted from 1 within the file; one more than there are, when lines are missing at the end.
        seq: the number of the line that is there, or should be.
        problem: what is wrong.
    """

    file: str
    line: int
    seq: int
    problem: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found.

    Attributes:
        first: the number of the first line that was verified; zero when there was none.
        head: the last line that is in order.
        unfinished_bytes: what follows that line and somebody did not finish to write.
        fault: what is wrong, if anything is.
        witnessed: how many lines were compared with those that a witness has.
    """

    first: int
    head: Head
    unfinished_bytes: int
    fault: Fault | None
    witnessed: int = 0
