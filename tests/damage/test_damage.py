"""Whatever is damaged is told as damaged, can be removed, and harms nothing else."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.damage.files import find_victims
from tests.damage.plan import Batch, make_plan
from tests.damage.run import BatchRun
from tests.damage.scene import Scene, open_scene
from tests.damage.violations import Violation

_ISOLATION_SECONDS = 60.0
_SHOWN = 60


@pytest.mark.timeout(1500)
async def test_damage_is_told_and_harms_nothing_else(
    seed: int, tmp_path: Path, request: pytest.FixtureRequest, figures: list[str]
) -> None:
    began = time.monotonic()
    options = request.config.option
    scene = await open_scene(options.scene or tmp_path / "pristine", tmp_path)
    plan = make_plan(seed, options.mutations, find_victims(scene.pristine, scene.labels))
    only = {int(number) for number in options.only.split(",") if number}
    report = Report(scene, seed, tmp_path)
    for batch in plan:
        if chosen := tuple(m for m in batch.mutations if not only or m.number in only):
            await report.run(replace(batch, mutations=chosen))
    figures += report.figures(time.monotonic() - began)
    assert not report.problems, f"{len(report.problems)} problems\n" + "\n".join(report.problems[:_SHOWN])


class Report:
    """Runs batches and keeps what was found."""

    def __init__(self, scene: Scene, seed: int, folder: Path) -> None:
        self.problems: list[str] = []
        self._scene, self._seed, self._folder = scene, seed, folder
        self._rules: Counter[str] = Counter()
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._done = self._checks = self._runs = 0
        self._isolated = 0.0

    async def run(self, batch: Batch) -> None:
        """Run a batch; where a violation may be of any of its mutations, run each of them alone as well."""
        run = await self._go(batch)
        self._done += len(run.done)
        self._kinds.update(run.kinds)
        shared = []
        for violation in run.findings.violations:
            blamed = [m.number for m in batch.mutations if violation.label in m.jobs] or [
                m.number for m in batch.mutations if len(batch.mutations) == 1
            ]
            if blamed:
                self._note(blamed[0], run, violation)
            else:
                shared.append(violation)
        if shared and not await self._isolate(batch):
            for violation in shared:
                self._note(None, run, violation)

    async def _isolate(self, batch: Batch) -> bool:
        """Run each mutation of a batch alone; return whether any brought about what concerns other jobs."""
        began, found = time.monotonic(), False
        for mutation in batch.mutations:
            if self._isolated + time.monotonic() - began > _ISOLATION_SECONDS:
                break
            run = await self._go(replace(batch, mutations=(mutation,)))
            for violation in run.findings.violations:
                if violation.label not in mutation.jobs:
                    self._note(mutation.number, run, violation)
                    found = True
        self._isolated += time.monotonic() - began
        return found

    async def _go(self, batch: Batch) -> BatchRun:
        self._runs += 1
        run = BatchRun(self._scene, batch, self._seed, self._folder / f"copy-{self._runs}")
        await run.go()
        self._checks += run.findings.checks
        return run

    def _note(self, number: int | None, run: BatchRun, violation: Violation) -> None:
        numbers = [number] if number is not None else [*run.done]
        what = "; ".join(f"{each}: {run.done[each]}" for each in numbers)
        again = f"--seed {self._seed} --only {','.join(map(str, numbers))}"
        self._rules[violation.rule.name] += 1
        self.problems.append(f"{violation}\n    by {what}\n    repeat with {again}")

    def figures(self, seconds: float) -> Iterator[str]:
        """Return the lines about the run."""
        yield f"seed {self._seed}: {self._done} mutations in {self._runs} copies, {self._checks} checks, {seconds:.0f} s"
        for kind in sorted({kind for kind, _ in self._kinds}):
            of_kind = {operation: count for (each, operation), count in self._kinds.items() if each == kind}
            done = ", ".join(f"{count} {operation}" for operation, count in sorted(of_kind.items()))
            yield f"  {kind}: {sum(of_kind.values())} ({done})"
        for rule, count in self._rules.most_common():
            yield f"  broken {count} times: {rule}"
