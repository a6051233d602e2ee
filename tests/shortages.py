"""Taking away from this process what it has, by the kernel's own limits."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def without_descriptors() -> Iterator[None]:
    """Have this process open nothing within the context, as if the machine had no file left (open(2), ENFILE).

    What is open stays (getrlimit(2), RLIMIT_NOFILE).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
