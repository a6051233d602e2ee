"""What happens before the power is cut: a daemon on a recorded disk, and clients that start jobs and follow them."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from worker_api.worker.v1 import JobEnd

from tests.daemon import Daemon
from tests.power import plans
from tests.power.ledger import Story
from tests.power.plans import Plan
from tests.power.views import told_end
from workerctl.client import Client
from workerctl.events import Output

FRIEND = "bob"
_SHORT_AT_ONCE = 6
# How often jobs of each kind are started; several of the short ones at once.
_PERIODS_SECONDS: dict[Callable[[int], Plan], float] = {
    plans.short: 1.0,
    plans.medium: 4.0,
    plans.lasting: 3.0,
    plans.over_limit: 15.0,
}
_AFTERWARDS_SECONDS = 120.0


class Scene:
    """Clients of one daemon that start jobs for a while, and what they were told.

    Args:
        daemon: runs already.
        log: the record log of the disk that the daemon's state directory is on.

    Attributes:
        stories: of all jobs, those without an end included.
    """

    def __init__(self, daemon: Daemon, log: Path) -> None:
        self.stories: list[Story] = []
        self._daemon = daemon
        self._log = log
        self._numbers = itertools.count(1)

    async def play(self, seconds: float) -> None:
        """Start jobs of all kinds for so long, stop those that have no end, and wait until all have ended."""
        async with (
            self._daemon.client() as client,
            asyncio.timeout(seconds + _AFTERWARDS_SECONDS),
            asyncio.TaskGroup() as jobs,
        ):
            endless = [await self._start(client, jobs, plan) for plan in plans.ENDLESS]
            await self._share(client, endless[0])
            async with asyncio.TaskGroup() as starting:
                for plan, period in _PERIODS_SECONDS.items():
                    starting.create_task(self._repeat(client, jobs, plan, period, seconds))
            await asyncio.gather(*(client.stop(story.id, timedelta(seconds=5)) for story in endless))
        for story in self.stories:
            story.close()

    async def _repeat(
        self, client: Client, jobs: asyncio.TaskGroup, plan: Callable[[int], Plan], period: float, seconds: float
    ) -> None:
        began = time.monotonic()
        for round_number in itertools.count():
            await asyncio.sleep(max(0.0, began + round_number * period - time.monotonic()))
            if time.monotonic() > began + seconds:
                return
            count = _SHORT_AT_ONCE if plan is plans.short else 1
            await asyncio.gather(*(self._start(client, jobs, plan) for _ in range(count)))

    async def _start(self, client: Client, jobs: asyncio.TaskGroup, plan: Callable[[int], Plan]) -> Story:
        story, request = plan(next(self._numbers))
        story.id = await client.spawn(request)
        story.spawned_at = self._recorded()
        self.stories.append(story)
        jobs.create_task(self._follow(client, story), name=story.id)
        return story

    async def _follow(self, client: Client, story: Story) -> None:
        end: JobEnd | None = None
        async with contextlib.aclosing(client.stream_log(story.id)) as events:
            async for event in events:
                match event:
                    case Output():
                        story.arrivals.append((event.offset_bytes + len(event.data), event.time_unix_nano))
                    case JobEnd():
                        end = event
        story.ended_at = self._recorded()
        assert end is not None
        assert end.started_at is not None and end.ended_at is not None
        story.end = told_end(end)
        story.started_ns, story.ended_ns = _nanoseconds(end.started_at), _nanoseconds(end.ended_at)

    async def _share(self, client: Client, story: Story) -> None:
        async with self._daemon.client(FRIEND) as friend:
            user = (await friend.whoami()).user
        assert user is not None
        await client.share(story.id, user.id, ["status", "stream-log"])
        story.shared_with, story.shared_at = user.id, self._recorded()

    def _recorded(self) -> int:
        return self._log.stat().st_size


def _nanoseconds(time_told: datetime) -> int:
    return round(time_told.timestamp() * 1e6) * 1000
