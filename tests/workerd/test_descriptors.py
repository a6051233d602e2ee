"""The descriptor that is set aside."""

import contextlib
import os
import resource
from collections.abc import Iterator

import pytest

from tests.shortages import without_descriptors
from workerd.descriptors import Spare


@pytest.fixture
def used_up() -> Iterator[tuple[Spare, list[int]]]:
    """A spare, and all other descriptors that this process may have, taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare, taken = Spare(), [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 10, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield spare, taken
    finally:
        for descriptor in taken:
            os.close(descriptor)
        spare.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_is_there_for_whoever_needs_it_and_afterwards_again(used_up: tuple[Spare, list[int]]) -> None:
    spare, _ = used_up
    for _ in range(2):
        with spare.given_up():
            os.close(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(RuntimeError), spare.given_up():
        raise RuntimeError
    assert spare.take()


def test_it_is_taken_again_as_soon_as_there_is_one(used_up: tuple[Spare, list[int]]) -> None:
    spare, taken = used_up
    with spare.given_up():
        taken.append(os.open(os.devnull, os.O_RDONLY))
    assert not spare.take()
    os.close(taken.pop())
    assert spare.take()


def test_a_process_without_descriptors_does_without() -> None:
    with without_descriptors():
        spare = Spare()
        assert not spare.take()
        with spare.given_up():
            pass
    assert spare.take()
    spare.close()
