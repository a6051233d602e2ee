"""The command line: `python -m benchmarks`."""

import signal
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


def known(_: object, names: str | tuple[str, ...] | None) -> None:
    """Check names of benchmarks.

    Raises:
        ValueError: there is none of that name.
    """
    for name in (names,) if isinstance(names, str) else names or ():
        if name not in BENCHMARKS:
            raise ValueError(f"{name!r} is none of {', '.join(BENCHMARKS)}")


@app.default
def benchmarks(
    *,
    only: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative=(), validator=known, help="These and no others.")
    ] = (),
    rounds: Annotated[int | None, Parameter(help="How often each side runs. [default: what suits each]")] = None,
    output: Annotated[Path | None, Parameter(help="A file for all that was measured, as JSON.")] = None,
    quick: Annotated[bool, Parameter(negative=(), help="Move next to nothing, to see that it works.")] = False,
    alone: Annotated[bool, Parameter(negative=(), help="Leave the peers out.")] = False,
    profile: Annotated[
        str | None, Parameter(validator=known, help="See where this one spends its time, instead of measuring.")
    ] = None,
    profile_to: Annotated[Path, Parameter(help="A file for the profile, as a flame graph.")] = Path("profile.svg"),
) -> int:
    """Measure workerd beside its peers, and print a table. Figures of different machines cannot be compared.

    What is written goes to the folder for temporary files (TMPDIR), whose disk is measured with it: some gigabytes.

    Example: `python -m benchmarks --only live stored-away --output figures.json`
    """
    if profile is not None:
        return record_profile(profile, profile_to, quick=quick)
    chosen = [BENCHMARKS[name] for name in only or BENCHMARKS]
    outcomes: list[Outcome] = []
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as folder,
        make_bench(QUICK if quick else FULL, Path(folder)) as bench,
    ):
        try:
            for benchmark in chosen:
                outcomes += measure(benchmark, bench, rounds or benchmark.rounds, tell, alone=alone)
        finally:  # what was measured before something failed, or somebody had enough
            print(markdown(outcomes), end="")
            for reason in {outcome.not_measured for outcome in outcomes} - {""}:
                tell(f"not measured: {reason}")
            if output is not None:
                write_json(output, bench, outcomes)
    return 0


def record_profile(name: str, to: Path, *, quick: bool) -> int:
    """Run one benchmark once, without its peer, under py-spy, which looks at every Python process that it starts."""
    py_spy = Path(sys.executable).with_name("py-spy")
    command = [sys.executable, "-m", "benchmarks", "--only", name, "--rounds", "1", "--alone", *["--quick"] * quick]
    recorder = [str(py_spy), "record", "--subprocesses", "--rate", "500", "--output", str(to)]
    return subprocess.run([*recorder, "--", *command], check=False).returncode


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # and clean up
    sys.exit(app())
