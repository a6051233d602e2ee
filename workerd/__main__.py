"""The command `workerd`."""

import contextlib
import io
import logging
import os
import sys
import tomllib
from pathlib import Path
from typing import Annotated

import cyclopts
import structlog
from cyclopts import Parameter

from pki.errors import PkiError
from workerd.engine.errors import EngineError
from workerd.errors import DaemonError
from workerd.settings import DEFAULT_KEEPALIVE_SECONDS, DEFAULT_LISTEN, make_settings

_USAGE = 2

app = cyclopts.App(
    name="workerd",
    version_flags=["--version"],
    config=cyclopts.config.Env("WORKERD_", command=False),
)


@app.default
def workerd(
    *,
    listen: Annotated[str, Parameter(help="HOST:PORT to listen on; port 0 takes a free one.")] = DEFAULT_LISTEN,
    state_dir: Annotated[Path | None, Parameter(help="Where jobs are kept. [default: the user's state folder]")] = None,
    pki_dir: Annotated[
        Path | None, Parameter(help="Where certificates are. [default: pki in the state folder]")
    ] = None,
    grace_seconds: Annotated[float, Parameter(help="Between SIGTERM and SIGKILL when nobody says how long.")] = 10.0,
    keepalive_seconds: Annotated[
        float, Parameter(help="After how much silence a connection is dead.")
    ] = DEFAULT_KEEPALIVE_SECONDS,
) -> int:
    """Run programs as jobs, for those who have a certificate.

    Prints one line on standard output once it serves; everything else goes to standard error. SIGTERM and SIGINT end
    it and leave its jobs running: the next workerd on the same state folder takes them up again.

    Example: `workerd --listen 127.0.0.1:7005 --state-dir /var/lib/workerd`
    """
    import uvloop

    from workerd.server import serve

    try:
        settings = make_settings(listen, state_dir, pki_dir, grace_seconds, keepalive_seconds)
        uvloop.run(serve(settings))
    except (DaemonError, EngineError, PkiError) as error:
        print(f"workerd: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        print(f"workerd: {error.filename or 'the system'}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


@app.meta.default
def with_configuration(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(help="A TOML file with the same settings.")] = None,
) -> int:
    """Read the configuration file, if any, and run."""
    if config is not None:
        app.config = (*app.config, cyclopts.config.Toml(config, must_exist=True))
    return int(app(tokens))


class _Log(io.StringIO):
    """Standard error, whose loss must not end the daemon: jobs and their logs do not need it."""

    def write(self, text: str, /) -> int:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def main() -> None:
    """Run the command."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # a standard descriptor that was closed is filled
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(_Log()))
    logging.basicConfig(level=logging.WARNING)
    app.print_error = app.meta.print_error = False  # an error is one line here, not a box
    app.exit_on_error = app.meta.exit_on_error = False
    try:
        sys.exit(app.meta())
    except (cyclopts.CycloptsError, OSError, tomllib.TOMLDecodeError) as error:
        print(f"workerd: {' '.join(str(error).split())} See --help.", file=sys.stderr)  # noqa: T201
        sys.exit(_USAGE)


if __name__ == "__main__":
    main()
