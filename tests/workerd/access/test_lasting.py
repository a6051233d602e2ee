"""What goes on for only as long as a check passes."""

import asyncio
import errno
import os

import pytest

from tests.waiting import LIMIT_SECONDS
from workerd.access.lasting import while_passing
from workerd.errors import UserUnknown


async def go_on(*failures: Exception | None) -> None:
    """Go on through as many changes as there are failures, after a check that passes."""
    changed, checked, left = asyncio.Event(), asyncio.Event(), [None, *failures]

    def check() -> None:
        checked.set()
        if (failure := left.pop(0)) is not None:
            raise failure

    async with asyncio.timeout(LIMIT_SECONDS), while_passing(check, changed, lambda: asyncio.sleep(0)):
        while left:
            checked.clear()
            changed.set()
            await checked.wait()


@pytest.mark.parametrize("failure", [UserUnknown("eve"), OSError(errno.ENFILE, os.strerror(errno.ENFILE))])
async def test_a_check_that_fails_ends_what_goes_on(failure: Exception) -> None:
    await go_on(None, None)
    with pytest.raises(type(failure)):
        await go_on(None, failure)
