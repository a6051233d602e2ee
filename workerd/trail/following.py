"""Copying the head of the trail to a file beside it and to a witness while a daemon runs.

One process does this for all that append. It reads the head every few seconds, which costs less than a message for each
line.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from audit.chain import Head
from system.ownership import Untrusted
from workerd.engine.errors import NoAnswer
from workerd.engine.threads import Threads
from workerd.trail.remembered import RememberedHead, synced_head
from workerd.trail.witness import make_witness
from workerd.waiting import meanwhile

log = structlog.get_logger()
_REMEMBER_SECONDS = 10.0
_WITNESS_SECONDS = 1.0
_FIRST_SECONDS = 1.0
_ANSWER_SECONDS = 10.0
_LAST_SECONDS = 5.0


@contextlib.asynccontextmanager
async def keeping_heads(directory: Path, remembered: RememberedHead, witness: str) -> AsyncIterator[None]:
    """Copy the heads of a trail for as long as the context lasts, and the last one at its end.

    A head that cannot be copied is logged, and nothing waits for it.

    Args:
        directory: the trail's folder.
        remembered: where the head is remembered.
        witness: the witness, as `--audit-witness` names it; empty for none.
    """
    followers = [_Follower(directory, remembered.keep, _REMEMBER_SECONDS, "remembered")]
    if witness:
        followers.append(_Follower(directory, make_witness(witness, directory).keep, _WITNESS_SECONDS, "witnessed"))
    async with contextlib.AsyncExitStack() as stack:
        for follower in followers:
            stack.push_async_callback(follower.finish)
            await stack.enter_async_context(meanwhile(follower.run()))
        yield


class _Follower:
    """Copies each new head of a trail to one place, in a thread of its own."""

    def __init__(self, directory: Path, keep: Callable[[Head], None], seconds: float, what: str) -> None:
        self._directory, self._keep, self._seconds, self._what = directory, keep, seconds, what
        self._threads = Threads("keeping the audit trail's head", most=1, limit_seconds=_ANSWER_SECONDS)
        self._kept: Head | None = None
        self._problem = ""

    async def run(self) -> None:
        """Copy the head every few seconds, for the first time soon, until cancelled."""
        await asyncio.sleep(_FIRST_SECONDS)
        while True:
            await self._try_to_look()
            await asyncio.sleep(self._seconds)

    async def finish(self) -> None:
        """Copy the last head."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._try_to_look()

    async def _try_to_look(self) -> None:
        try:
            await self._threads.run(self._look)
        except (OSError, Untrusted, NoAnswer, RuntimeError) as error:
            if str(error) != self._problem:
                log.warning(f"the audit trail's head is not {self._what}", error=str(error))
            self._problem = str(error)
        else:
            if self._problem:
                log.info(f"the audit trail's head is {self._what} again")
            self._problem = ""

    def _look(self) -> None:
        head = synced_head(self._directory, self._kept)
        if head is not None and head != self._kept:
            self._keep(head)
            self._kept = head
