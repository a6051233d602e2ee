"""The time limit of a test, where pytest-timeout leaves it: once it is over, and while things are taken down.

pytest-timeout raises once, where the test waits. What unwinds then may wait as well, as `subprocess.Popen` does for its
process on leaving a `with`. And from a failure on nothing limits how long things are taken down.
"""

import signal
from collections.abc import Generator
from typing import Any

import pytest

_AGAIN_SECONDS = 10.0
_TAKE_DOWN_SECONDS = 120.0


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(settings: Any) -> Generator[None, object, object]:
    """Have the limit raise again for as long as what it has interrupted waits for something else."""
    result = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, _AGAIN_SECONDS)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    """Limit how long things are taken down, where the limit of the test is not in force any more."""
    if signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return
    signal.signal(signal.SIGALRM, _fail)
    signal.setitimer(signal.ITIMER_REAL, _TAKE_DOWN_SECONDS, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _fail(*_: object) -> None:
    pytest.fail(f"what the test used was not taken down within {_TAKE_DOWN_SECONDS:g} s")
