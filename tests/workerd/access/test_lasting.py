"""What goes on for only as long as a check passes, and what becomes of checks that cannot be made."""

import asyncio
import errno
import os

import pytest

from tests.waiting import LIMIT_SECONDS
from workerd.access import lasting
from workerd.access.lasting import while_passing
from workerd.errors import UserUnknown

NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Check:
    """A check that fails as often as it has errors to raise; the first is made when it begins."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = [None, *errors]
        self.passed = asyncio.Event()

    def __call__(self) -> None:
        if self._errors and (error := self._errors.pop(0)) is not None:
            raise error
        if not self._errors:
            self.passed.set()


async def go_on(check: Check, changes: int = 1) -> None:
    """Go on through some changes until the check has raised all that it has to raise, and passed."""
    changed = asyncio.Event()
    async with asyncio.timeout(LIMIT_SECONDS), while_passing(check, changed):
        for _ in range(changes):
            changed.set()
            await asyncio.sleep(0.05)  # then a check that could not be made waits to be made again
        await check.passed.wait()


async def test_a_check_that_fails_ends_what_goes_on() -> None:
    with pytest.raises(UserUnknown):
        await go_on(Check(UserUnknown("eve")))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await go_on(Check(OSError(errno.EIO, os.strerror(errno.EIO))))


async def test_what_the_machine_lacks_for_a_moment_ends_nothing() -> None:
    await go_on(Check(NO_DESCRIPTOR, MemoryError()))
    with pytest.raises(UserUnknown):
        await go_on(Check(NO_DESCRIPTOR, UserUnknown("eve")))


async def test_what_cannot_be_checked_for_seconds_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lasting, "_PAUSES_SECONDS", (0.001, 0.001))
    await go_on(Check(*[NO_DESCRIPTOR] * 2))
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        await go_on(Check(*[NO_DESCRIPTOR] * 3))


async def test_what_changes_until_a_check_can_be_made_is_checked_after_it() -> None:
    with pytest.raises(UserUnknown):
        await go_on(Check(NO_DESCRIPTOR, None, UserUnknown("eve")), changes=2)
