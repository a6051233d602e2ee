"""Everything that can be broken is broken, over and over, and no byte is lost, doubled or altered."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.check import check_world
from tests.faults.conftest import FIGURES
from tests.faults.schedule import RepeatSpawn, StartFollower, StartJob, Step, Strike, make_schedule
from tests.faults.striking import Striker
from tests.faults.world import World

_FEWEST_FAULTS = 300
_RUN_SECONDS = 400.0
_END_SECONDS = 150.0
_SHOWN = 20


@pytest.mark.timeout(590)
async def test_no_byte_is_lost_whatever_breaks(seed: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    began = time.monotonic()
    async with World(tmp_path) as world:
        async with asyncio.timeout(_RUN_SECONDS):
            done = await follow_schedule(world, make_schedule(seed))
        await world.wait_for_everybody(_END_SECONDS)
        problems, compared = await check_world(world)
        reconnects = sum(follower.reconnects for follower in world.followers)
        lost = sum(job.doomed for job in world.jobs)
    request.config.stash[FIGURES] = (
        f"{done.total()} faults ({', '.join(f'{count} {kind}' for kind, count in sorted(done.items()))}),"
        f" {len(world.jobs)} jobs, {lost} of them lost, {len(world.followers)} followers, {reconnects} reconnects,"
        f" {compared / 1e6:.0f} MB compared, {time.monotonic() - began:.0f} s"
    )
    assert not problems, f"seed {seed}: {len(problems)} problems\n" + "\n".join(problems[:_SHOWN])
    assert done.total() >= _FEWEST_FAULTS


async def follow_schedule(world: World, steps: tuple[Step, ...]) -> Counter[str]:
    """Do what a schedule says, at the pace that it says; what takes time itself delays what follows.

    Returns:
        How many faults of each kind hit something.
    """
    striker = Striker(world)
    done: Counter[str] = Counter()
    at = 0.0
    try:
        for step in steps:
            await asyncio.sleep(step.at_seconds - at)
            at = step.at_seconds
            world.raise_failures()
            match step.action:
                case StartJob():
                    world.start_job(step.action)
                case StartFollower():
                    world.start_follower(step.action)
                case RepeatSpawn():
                    world.repeat_spawn(step.action)
                case Strike(kind=kind):
                    done[kind] += await striker.strike(step.action)
    finally:
        await striker.calm()
    return done
