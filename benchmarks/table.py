"""The outcome, as a table for people and as JSON for programs."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figure import Goal, Outcome, Spread
from benchmarks.sizes import FULL
from benchmarks.ssh import SshUnavailable
from benchmarks.ssh import version as ssh_version

_HEAD = ("figure", "ours", "peer", "ratio", "goal", "met", "CPU s, ours", "CPU s, peer")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Make the table: medians, with the lowest and the highest in parentheses."""
    rows = [_HEAD, *map(_row, outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines) + "\n"


def write_json(path: Path, bench: Bench, outcomes: Sequence[Outcome]) -> None:
    """Write everything that was measured, every run of it, and what it was measured on."""
    ssh = None if isinstance(bench.peer, SshUnavailable) else {"version": ssh_version(), "cipher": bench.peer.cipher()}
    document = {
        "workerd": version("workerd"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "ssh": ssh,
        "quick": bench.sizes is not FULL,
        "figures": list(map(_plain, outcomes)),
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def tell(line: str) -> None:
    """Tell the person who waits how far it has got."""
    print(line, file=sys.stderr, flush=True)


def _row(outcome: Outcome) -> tuple[str, ...]:
    unit = outcome.figure.unit
    peer = _spread(outcome.peer, unit) or ("not measured" if outcome.figure.peer else "–")
    return (
        outcome.figure.name,
        _spread(outcome.ours, unit),
        peer,
        "–" if outcome.ratio is None else f"{outcome.ratio:.2f}",
        " and ".join(_goal(goal, unit) for goal in outcome.figure.goals) or "–",
        _verdict(outcome),
        _cpu(outcome.ours),
        _cpu(outcome.peer),
    )


def _verdict(outcome: Outcome) -> str:
    if outcome.met is None:
        return "not measured" if outcome.figure.goals else "–"
    return "yes" if outcome.met else "no"


def _spread(spread: Spread | None, unit: str) -> str:
    if spread is None:
        return ""
    return f"{_number(spread.median)} {unit} ({_number(min(spread.values))}–{_number(max(spread.values))})"


def _goal(goal: Goal, unit: str) -> str:
    return f"{goal.relation} {goal.number:g} {'×' if goal.of_peer else unit}"


def _cpu(spread: Spread | None) -> str:
    return "–" if spread is None or spread.cpu_seconds is None else f"{spread.cpu_seconds:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(outcome: Outcome) -> dict[str, object]:
    return {
        "figure": outcome.figure.name,
        "ours": _plain_spread(outcome.ours, outcome.figure.ours),
        "peer": _plain_spread(outcome.peer, outcome.figure.peer) if outcome.figure.peer else None,
        "not_measured": outcome.not_measured,
        "unit": outcome.figure.unit,
        "ratio": outcome.ratio,
        "goals": [_goal(goal, outcome.figure.unit) for goal in outcome.figure.goals],
        "met": outcome.met,
    }


def _plain_spread(spread: Spread | None, what: str) -> dict[str, object]:
    if spread is None:
        return {"what": what, "rounds": 0}
    return {
        "what": what,
        "rounds": len(spread.values),
        "median": spread.median,
        "lowest": min(spread.values),
        "highest": max(spread.values),
        "values": spread.values,
        "cpu_seconds": spread.cpu_seconds,
    }
