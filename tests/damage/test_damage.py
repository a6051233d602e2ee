"""Whatever is damaged is told as damaged, can be removed, and harms nothing else."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.damage.files import find_victims
from tests.damage.plan import make_plan
from tests.damage.report import Report
from tests.damage.scene import open_scene

_SHOWN = 40
_RUN_SECONDS = 1400.0


@pytest.mark.timeout(1500)
async def test_damage_is_told_and_harms_nothing_else(
    seed: int, tmp_path: Path, request: pytest.FixtureRequest, figures: list[str]
) -> None:
    began = time.monotonic()
    options = request.config.option
    scene = await open_scene(options.scene or tmp_path / "pristine", tmp_path)
    plan = make_plan(seed, options.mutations, find_victims(scene.pristine, scene.labels))
    only = {int(number) for number in options.only.split(",") if number}
    again = f"--seed {seed} --mutations {options.mutations}"
    report = Report(scene, again, seed, tmp_path, options.limit_seconds)
    for batch in plan:
        if time.monotonic() - began > _RUN_SECONDS:
            figures.append(f"  mutations from {batch.mutations[0].number} on were not made: too little time")
            break
        if chosen := tuple(mutation for mutation in batch.mutations if not only or mutation.number in only):
            await report.run(replace(batch, mutations=chosen))
    figures += report.figures(time.monotonic() - began)
    problems = list(report.problems())
    if options.report is not None:
        options.report.write_text("".join(f"{problem}\n" for problem in problems))
    assert not problems, f"{len(problems)} problems\n" + "\n".join(problems[:_SHOWN])
