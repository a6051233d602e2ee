"""The power is cut at any write, and what clients had been told is so afterwards."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.power.cuts import Cut, Replay, choose_cuts
from tests.power.disk import (
    FILE_SYSTEMS,
    DiskFailed,
    copy_image,
    loop_device,
    make_image,
    mounted,
    sync_file_system,
)
from tests.power.inspection import Inspection
from tests.power.ledger import Story
from tests.power.recorder import Recording, recorded_image
from tests.power.scene import FRIEND, Scene
from tests.power.verdict import Count, Verdict
from tests.power.views import view_by_daemon, view_by_engine
from workerd.engine.job import Durability

# Under `exit` nothing is promised of a job that runs.
_PROMISED = {
    Durability.INTERVAL: frozenset(Count),
    Durability.EXIT: frozenset(Count) - {Count.SPAWN_MISSING, Count.SHARE_MISSING, Count.LATE},
}
_FEWEST_CUTS = 20
_DAEMON_EVERY = 20  # of so many cuts, one is looked at through a whole daemon


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
@pytest.mark.parametrize("durability", Durability)
async def test_what_was_told_is_there_after_a_power_cut(
    kind: str,
    durability: Durability,
    recorder: Path,
    folder: Path,
    cut_count: int,
    keep: Path | None,
    seed: int,
    verdicts: dict[str, Verdict],
) -> None:
    try:
        with recorded_disk(kind, recorder, folder):
            pass
    except DiskFailed as error:
        pytest.skip(f"no recorded disk can be made here: {error}")
    if durability is Durability.EXIT:
        cut_count //= 8
        if cut_count < _FEWEST_CUTS:
            pytest.skip("too few cuts were asked for to make some of them under --durability exit")
    verdict = verdicts[f"{kind}, {durability}"] = Verdict(_PROMISED[durability])
    base, log = folder / "base", folder / "log"
    seconds = min(40.0, 20.0 + cut_count / 8)
    first, stories = await record_scene(kind, durability, recorder, folder, seconds)
    recording = Recording(log)
    try:
        told = [size for story in stories for size in story.told_at()]
        replay = Replay(recording, base)
        for number, cut in enumerate(choose_cuts(recording, told, first, cut_count, seed)):
            began = time.monotonic()
            known = set(verdict.problems)
            replay.make(cut, folder / "cut")
            await inspect_cut(kind, folder, cut, stories, verdict, by_daemon=number % _DAEMON_EVERY == 0)
            verdict.cut_seconds.append(time.monotonic() - began)
            if keep is not None and verdict.problems.keys() - known:
                replay.make(cut, keep / f"{kind}-{durability}-{cut.count}-{cut.variant}")
        replay.finish()
        assert base.read_bytes() == (folder / "image").read_bytes(), "the records are not all that was written"
    finally:
        recording.close()
    if problems := verdict.describe_problems():
        pytest.fail(f"seed {seed}:\n{problems}", pytrace=False)


@contextlib.contextmanager
def recorded_disk(kind: str, recorder: Path, folder: Path) -> Iterator[Path]:
    """Mount a new disk, `image`, whose records go to `log`; `base` is the disk before."""
    image = folder / "image"
    make_image(kind, image)
    copy_image(image, folder / "base")
    (folder / "recorded").mkdir(exist_ok=True)
    with (
        recorded_image(recorder, image, folder / "log", folder / "recorded") as file,
        loop_device(file) as device,
        mounted(kind, device, folder / "mounted") as mountpoint,
    ):
        yield mountpoint


async def record_scene(
    kind: str, durability: Durability, recorder: Path, folder: Path, seconds: float
) -> tuple[int, list[Story]]:
    """Run a daemon and jobs on a recorded disk.

    Returns:
        The size of the record log when the scene began, and what clients were told.
    """
    log = folder / "log"
    with recorded_disk(kind, recorder, folder) as mountpoint:
        daemon = Daemon(mountpoint / "state", ("--durability", durability))
        try:
            daemon.pki.issue_client(FRIEND)
            daemon.start()
            sync_file_system(mountpoint)  # the daemon itself had been there for long
            first = log.stat().st_size
            scene = Scene(daemon, log)
            await scene.play(seconds)
        finally:
            await asyncio.to_thread(daemon.close)
    return first, scene.stories


async def inspect_cut(
    kind: str, folder: Path, cut: Cut, stories: list[Story], verdict: Verdict, *, by_daemon: bool
) -> None:
    """Look at every job on the disk `cut`, as it is when the machine is up again."""
    verdict.counts[Count.CUTS] += 1
    verdict.counts[Count.DAEMONS] += by_daemon
    with contextlib.ExitStack() as stack:
        if cut.seed % 2:  # the disk has another number than before, as it may after a restart
            stack.enter_context(loop_device(folder / "base"))
        device = stack.enter_context(loop_device(folder / "cut"))
        mountpoint = stack.enter_context(mounted(kind, device, folder / "mounted"))
        view = view_by_daemon if by_daemon else view_by_engine
        try:
            async with view(mountpoint / "state") as seen:
                await Inspection(seen, cut, verdict).inspect(stories)
        except Exception as error:  # whatever it is, the jobs cannot be used
            verdict.violate(Count.FAILED, f"no daemon can serve at {cut}: {error!r}")
