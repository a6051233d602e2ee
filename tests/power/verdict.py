"""What was counted after the cuts of one disk, and what of it is a violation."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

_SHOWN = 6


class Count(StrEnum):
    """What is counted, in the order of the table. What begins with "!" must not happen."""

    CUTS = "cuts"
    DAEMONS = "of them looked at through a daemon"
    ENDS = "ends that had been told"
    END_MISSING = "! missing"
    END_UNREADABLE = "! unreadable"
    END_OTHER = "! ended in another way"
    END_INCOMPLETE = "! log incomplete"
    RAN = "other jobs that had run"
    RAN_UNREADABLE = "! unreadable, id told"
    UNTOLD_UNREADABLE = "! unreadable, id not told"
    LOST = "lost"
    ENDED = "ended, and not told"
    SPAWNS = "of these, ids that had been told"
    SPAWN_MISSING = "! gone"
    SHARES = "shares that had been told"
    SHARE_MISSING = "! not shared"
    READS = "reads of logs"
    WRONG_BYTES = "! bytes that were not printed"
    HOLES = "! holes, or bytes out of place"
    WRONG_SUMMARY = "! wrong size, digest or end"
    FAILED = "! failed otherwise, or had no end"
    UNLIKE_LIST = "! not as the list has it"
    LATE = "! jobs that lost more than 10 s of output"
    LEFTOVERS = "unreadable jobs that had not run"


@dataclass
class Verdict:
    """The counts of all cuts of one disk.

    Attributes:
        problems: a sentence for each violation, by what is violated.
        lost_seconds: of each job that ran when the power was cut, how much of its last output was gone.
        read_seconds: how long it took to read each log from its beginning.
        cut_seconds: how long it took to look at each cut.
        promised: what is counted as a violation; the others are only told.
    """

    promised: frozenset[Count] = frozenset(Count)
    counts: Counter[Count] = field(default_factory=Counter)
    problems: dict[Count, list[str]] = field(default_factory=dict)
    lost_seconds: list[float] = field(default_factory=list)
    read_seconds: list[float] = field(default_factory=list)
    cut_seconds: list[float] = field(default_factory=list)

    def violate(self, count: Count, sentence: str) -> None:
        """Count a violation."""
        self.counts[count] += 1
        if count in self.promised:
            self.problems.setdefault(count, []).append(sentence)

    def describe_problems(self) -> str:
        """Return the violations for people, some of each kind; empty if there is none."""
        lines = []
        for count, sentences in self.problems.items():
            lines.append(f"{len(sentences)} × {count.name}: {count.removeprefix('! ')}")
            lines += [f"    {sentence}" for sentence in sentences[:_SHOWN]]
        return "\n".join(lines)


def format_table(verdicts: Mapping[str, Verdict]) -> str:
    """Return the counts of several disks as a table."""
    rows: list[Sequence[str]] = [("", *verdicts)]
    for count in Count:
        indent = "  " if count.startswith("!") or count in (Count.LOST, Count.ENDED, Count.DAEMONS) else ""
        rows.append((f"{indent}{count}", *(str(verdict.counts[count]) for verdict in verdicts.values())))
    measures = (
        ("seconds of output that lost jobs had lost", "lost_seconds", 1),
        ("seconds that reading a log took", "read_seconds", 2),
        ("seconds that each cut took", "cut_seconds", 2),
    )
    for title, name, digits in measures:
        cells = [_summarize(getattr(verdict, name), digits) for verdict in verdicts.values()]
        rows.append((f"{title} (median, 99 %, most)", *cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _summarize(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    ordered = sorted(values)
    most = ordered[-1]
    late = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return ", ".join(f"{value:.{digits}f}" for value in (statistics.median(ordered), late, most))
