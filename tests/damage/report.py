"""Running the batches of a plan, and what is said of them in the end."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.damage.mutations import Operation
from tests.damage.plan import Batch
from tests.damage.run import BatchRun
from tests.damage.scene import Scene
from tests.damage.violations import Findings, Rule, Violation

_ISOLATION_SECONDS = 60.0
_LINES = 5


class Report:
    """Runs batches and keeps what was found, by the numbers of the mutations that brought it about.

    Args:
        options: those that repeat the run.
        limit_seconds: how long any call may take.
    """

    def __init__(self, scene: Scene, options: str, seed: int, folder: Path, limit_seconds: float) -> None:
        self._scene, self._options, self._seed, self._folder = scene, options, seed, folder
        self._limit_seconds = limit_seconds
        self._found: dict[tuple[int, ...], list[Violation]] = defaultdict(list)
        self._done: dict[int, str] = {}
        self._kinds: dict[int, tuple[str, Operation]] = {}
        self._checks = self._runs = 0
        self._isolated = 0.0

    async def run(self, batch: Batch) -> None:
        """Run a batch; where a violation may be of any of its mutations, run each of them alone as well."""
        run = await self._go(batch)
        self._done |= run.done
        self._kinds |= run.kinds
        numbers = tuple(mutation.number for mutation in batch.mutations)
        shared = []
        for violation in run.findings.violations:
            blamed = [mutation.number for mutation in batch.mutations if violation.label in mutation.jobs]
            if blamed or len(numbers) == 1:
                self._found[blamed[0] if blamed else numbers[0],].append(violation)
            else:
                shared.append(violation)
        if shared and not await self._isolate(batch):
            self._found[numbers] += shared

    async def _isolate(self, batch: Batch) -> bool:
        """Run each mutation of a batch alone; return whether any brought about what concerns other jobs."""
        began, found = time.monotonic(), False
        for mutation in batch.mutations:
            if self._isolated + time.monotonic() - began > _ISOLATION_SECONDS:
                break
            run = await self._go(replace(batch, mutations=(mutation,)))
            others = [each for each in run.findings.violations if each.label not in mutation.jobs]
            if others:
                self._found[mutation.number,] += others
                found = True
        self._isolated += time.monotonic() - began
        return found

    async def _go(self, batch: Batch) -> BatchRun:
        self._runs += 1
        folder = self._folder / f"copy-{self._runs}"
        run = BatchRun(self._scene, batch, self._seed, folder, Findings(self._limit_seconds))
        await run.go()
        self._checks += run.findings.checks
        return run

    def problems(self) -> Iterator[str]:
        """Describe each mutation that brought a violation about, and how to repeat it."""
        for numbers, violations in self._found.items():
            done = "; ".join(self._done.get(number, "?") for number in numbers)
            again = f"{self._options} --only {','.join(map(str, numbers))}"
            lines = [str(violation) for violation in violations[:_LINES]]
            if len(violations) > _LINES:
                lines.append(f"and {len(violations) - _LINES} more")
            yield "\n    ".join([f"{done} ({again})", *lines])

    def figures(self, seconds: float) -> Iterator[str]:
        """Return the lines about the run."""
        counts = f"{len(self._done)} mutations in {self._runs} copies, {self._checks} checks"
        yield f"seed {self._seed}: {counts}, {seconds:.0f} s"
        by_kind: dict[str, Counter[str]] = defaultdict(Counter)
        for kind, operation in self._kinds.values():
            by_kind[kind][operation] += 1
        for kind, operations in sorted(by_kind.items()):
            done = ", ".join(f"{count} {operation}" for operation, count in sorted(operations.items()))
            alone = [numbers[0] for numbers in self._found if len(numbers) == 1]
            bad = [number for number in alone if number in self._kinds and self._kinds[number][0] == kind]
            yield f"  {kind}: {operations.total()}, of which {len(bad)} broke a promise ({done})"
        for rule in Rule:
            broken = [numbers for numbers, found in self._found.items() if any(each.rule is rule for each in found)]
            if broken:
                yield f"  {rule.name}, {rule}: broken by {len(broken)}"
