"""The command line: `python -m benchmarks`."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from benchmarks import chatty, following, many_jobs, memory, processes, starting, streaming
from benchmarks.bench import make_bench
from benchmarks.figure import Outcome
from benchmarks.measure import measure
from benchmarks.sizes import FULL, QUICK
from benchmarks.table import markdown, tell, write_json

_GROUPS = (streaming, chatty, starting, following, memory, many_jobs, processes)
BENCHMARKS = {benchmark.name: benchmark for group in _GROUPS for benchmark in group.BENCHMARKS}

app = App(name="benchmarks", version_flags=())


@app.default
def benchmarks(
    *,
    only: Annotated[list[str], Parameter(consume_multiple=True, negative=(), help="These and no others.")] = [],
    rounds: Annotated[int | None, Parameter(help="How often each side runs. [default: what suits each]")] = None,
    output: Annotated[Path | None, Parameter(help="A file for everything that was measured, as JSON.")] = None,
    quick: Annotated[bool, Parameter(negative=(), help="Move next to nothing: to see that it works.")] = False,
) -> int:
    """x."""
    chosen = list(map(BENCHMARKS.__getitem__, only or BENCHMARKS))
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as folder,
        make_bench(QUICK if quick else FULL, Path(folder)) as bench,
    ):
        try:
            for benchmark in chosen:
                outcomes += measure(benchmark, bench, rounds or benchmark.rounds, tell)
        finally:
            print(markdown(outcomes))
            if output is not None:
                write_json(output, bench, outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(app())
