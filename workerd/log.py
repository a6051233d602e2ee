"""What the daemon says while it runs: lines with fields, on standard error."""

import contextlib
import io
import logging
import os
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger


class _Log(io.StringIO):
    """Standard error, whose loss must not end the daemon: jobs and their logs do not need it."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def configure_log() -> None:
    """Send what is logged to standard error. The three standard descriptors are open afterwards, if only on nothing.

    A traceback is plain: local variables hold users' secrets.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # a standard descriptor that was closed is filled
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:  # it was closed
        sys.stderr = open(2, "w")  # noqa: SIM115 for the life of the process
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
    )
    processors = structlog.get_config()["processors"]
    structlog.configure([*processors[:-1], _escape, renderer], logger_factory=structlog.PrintLoggerFactory(_Log()))
    logging.basicConfig(level=logging.WARNING)


def _escape(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Escape what is not printable in the texts of an event; the renderer does so only in some of them."""
    del logger, method
    return {
        name: repr(value)[1:-1] if isinstance(value, str) and not value.isprintable() else value
        for name, value in event.items()
    }
