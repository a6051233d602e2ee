"""Measuring: both sides in turn, so that what else happens on the machine happens to both."""

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.figure import Benchmark, Outcome, Reading, spread
from benchmarks.ssh import SshUnavailable


def measure(
    benchmark: Benchmark, bench: Bench, rounds: int, tell: Callable[[str], None], *, alone: bool = False
) -> list[Outcome]:
    """Run one benchmark.

    Args:
        rounds: how often each side runs.
        tell: is told of each run, as a line.
        alone: whether the peers are left out.

    Returns:
        One outcome for each of its figures.

    Raises:
        Damaged: what was moved did not arrive as it was.
    """
    missing = _why_without_peer(benchmark, bench, alone=alone)
    ours: list[Reading] = []
    peers: list[Reading] = []
    with benchmark.prepare(bench) as sides:
        for number in range(1, rounds + 1):
            for name, side, readings in (("ours", sides.ours, ours), ("peer", sides.peer, peers)):
                if side is not None and not (name == "peer" and missing):
                    readings.append(side())
                    tell(f"{benchmark.name}, round {number}, {name}: {_describe(benchmark, readings[-1])}")
    outcomes = []
    for number, figure in enumerate(benchmark.figures):
        theirs = spread(peers, number) if peers and figure.peer else None
        outcomes.append(Outcome(figure, spread(ours, number), theirs, missing if figure.peer else ""))
    return outcomes


def _why_without_peer(benchmark: Benchmark, bench: Bench, *, alone: bool) -> str:
    if alone:
        return "the peers were left out"
    if benchmark.over_ssh and isinstance(bench.peer, SshUnavailable):
        return str(bench.peer)
    return ""


def _describe(benchmark: Benchmark, reading: Reading) -> str:
    values = [f"{value:.4g} {figure.unit}" for value, figure in zip(reading.values, benchmark.figures, strict=True)]
    cpu = [] if reading.cpu_seconds is None else [f"{reading.cpu_seconds:.2f} s of CPU"]
    return ", ".join(values + cpu)
