"""Every benchmark runs to its end and finds what it moved unaltered; how fast is nobody's business here."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.figure import Figure, Goal, Outcome, Spread
from benchmarks.table import markdown

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """What a run of all benchmarks gave."""

    table: str
    figures: dict[str, Any]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All benchmarks, which move next to nothing, with ssh where there is an sshd."""
    output = tmp_path_factory.mktemp("benchmarks") / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--output", str(output)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr
    for line in result.stderr.splitlines():
        if line.startswith("not measured: "):
            print(line)
    return Run(result.stdout, {figure["figure"]: figure for figure in json.loads(output.read_text())["figures"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_gives_its_figures(quick_run: Run, name: str) -> None:
    for figure in BENCHMARKS[name].figures:
        found = quick_run.figures[figure.name]
        missing = bool(found["not_measured"])
        assert not missing or BENCHMARKS[name].over_ssh
        assert found["ours"]["rounds"] == 1
        assert (found["peer"] or {}).get("rounds") == (None if not figure.peer else 0 if missing else 1)
        [row] = [row for row in quick_run.table.splitlines() if row.startswith(f"| {figure.name} ")]
        assert ("not measured" in row) == missing


def test_an_unknown_name_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "no-such"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0
    assert "no-such" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("ours", "peer", "met"),
    [(30.0, 10.0, True), (19.0, 10.0, False), (30.0, None, None), (4.0, None, False), (4.0, 1.0, False)],
)
def test_a_figure_is_met_when_every_goal_is(ours: float, peer: float | None, met: bool | None) -> None:
    goals = (Goal("≥", 2, of_peer=True), Goal("≥", 5))
    figure = Figure(name="figure", ours="ours", peer="peer", unit="jobs/s", goals=goals)
    theirs = None if peer is None else Spread((peer,), None)
    outcome = Outcome(figure, Spread((ours,), None), theirs, "" if theirs else "no sshd")
    assert outcome.met is met
    assert outcome.ratio == (None if peer is None else ours / peer)
    verdict = {True: "yes", False: "no", None: "not measured"}[met]
    assert f"| {verdict} " in markdown([outcome])


def test_the_table_shows_medians_and_extremes() -> None:
    figure = Figure(name="figure", ours="ours", peer="peer", unit="MB/s", goals=(Goal("≥", 1.3, of_peer=True),))
    outcome = Outcome(figure, Spread((1.0, 9.0, 2.0), 0.5), Spread((4.0, 1.0, 1.0), None))
    head, _, row = markdown([outcome]).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == head.count("|") - 1
    assert cells == ["figure", "2 MB/s (1–9)", "1 MB/s (1–4)", "2.00", "≥ 1.3 ×", "yes", "0.50", "–"]
