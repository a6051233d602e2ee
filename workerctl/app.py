"""Assembling the command line: the options before the subcommand, and the subcommands that are installed."""

import asyncio
import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated, Any

import cyclopts
import uvloop
from cyclopts import App, Group, Parameter

from pki.errors import InputInvalid, PkiError
from workerctl.command_line import bind_job, split_command_line
from workerctl.context import Context
from workerctl.durations import read_seconds
from workerctl.errors import CallFailed, ClientError, UsageInvalid, sentence
from workerctl.exit_codes import ExitCode
from workerctl.retry import DEFAULT_KEEPALIVE_SECONDS, DEFAULT_RETRY_SECONDS, Patience
from workerctl.target import Target
from workerctl.terminal import warn

GROUP = "workerctl.commands"
HELP = """Run programs on machines you are not sitting at, and get every byte of their output back.

Example: `workerctl run -- echo hello`

Without --endpoint, a daemon of your own on this machine is used, and started when none runs.
"""


def make_command(arguments: Sequence[str]) -> Callable[[], Any]:
    """Build the application for one command line. Only the command that is meant is imported: it is faster.

    Returns:
        Parses the command line, runs the command, and returns its exit code.
    """
    app = App(
        name="workerctl", help=HELP, version=version("workerd"), result_action="return_value", exit_on_error=False
    )
    app.meta.result_action = "return_value"
    app.meta.group_parameters = Group("Connection", sort_key=1)  # a command's own options come first
    app.print_error = app.meta.print_error = False  # an error is one line here, not a box
    installed = sorted(entry_points(group=GROUP), key=_ours_first)
    before = itertools.takewhile(lambda word: word != "--", arguments)
    meant = {entry_point.name for entry_point in installed}.intersection(before)
    added: set[str] = set()
    for entry_point in installed:
        if entry_point.name in added:
            warn(f"the command {entry_point.name!r} of {_package(entry_point)!r} is left out: there is one already")
        elif not meant or entry_point.name in meant:
            _add(app, entry_point)
        added.add(entry_point.name)

    @app.meta.default
    def workerctl(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        endpoint: Annotated[
            str | None, Parameter(env_var="WORKERCTL_ENDPOINT", help="The daemon's https://HOST:PORT.")
        ] = None,
        username: Annotated[
            str | None,
            Parameter(env_var="WORKERCTL_USERNAME", help="Whom to call for. [default: the certificate's user]"),
        ] = None,
        certificate: Annotated[
            str | None,
            Parameter(
                env_var="WORKERCTL_CERTIFICATE",
                help="Whose certificate to present. [default: --username's, or the only one, or your login name's]",
            ),
        ] = None,
        pki_dir: Annotated[
            str | None,  # not a path, which would make the current folder of an empty text
            Parameter(env_var="WORKERCTL_PKI_DIR", help="Where certificates are. [default: your own daemon's]"),
        ] = None,
        retry_seconds: Annotated[
            float,
            Parameter(
                converter=read_seconds,
                env_var="WORKERCTL_RETRY_SECONDS",
                help="How long to try again when the daemon goes away.",
            ),
        ] = DEFAULT_RETRY_SECONDS,
        keepalive_seconds: Annotated[
            float,
            Parameter(
                converter=read_seconds,
                env_var="WORKERCTL_KEEPALIVE_SECONDS",
                help="After how much silence a connection is dead.",
            ),
        ] = DEFAULT_KEEPALIVE_SECONDS,
    ) -> int:
        patience = Patience(retry_seconds, keepalive_seconds)
        pki = Path(pki_dir) if pki_dir else None
        context = Context(Target(endpoint or None, username or None, pki, certificate or None), patience)
        if arguments and not tokens:
            given = {"--endpoint": endpoint, "--username": username, "--certificate": certificate, "--pki-dir": pki_dir}
            raise UsageInvalid(_without_command(given, added))
        words, _, _ = app.parse_commands(tokens)
        command, bound, injected = app.parse_args(tokens)
        bind_job(command, bound, job)
        if "context" in injected:
            bound.arguments["context"] = context
        try:
            result = command(*bound.args, **bound.kwargs)
            if inspect.iscoroutine(result):
                result = uvloop.run(result)
        except CallFailed as error:
            error.command = " ".join(words)
            raise
        return int(result or ExitCode.OK)

    own, job = split_command_line(app, arguments)
    return functools.partial(app.meta, own)


def main_with(arguments: Sequence[str]) -> int:
    """Run a command line and return what to exit with. What goes wrong is one line on standard error."""
    try:
        return int(make_command(arguments)() or ExitCode.OK)
    except cyclopts.CycloptsError as error:
        warn(f"{_in_words(error)} See --help.")
        return ExitCode.USAGE
    except ClientError as error:
        _report(error)
        return error.exit_code
    except BrokenPipeError as error:
        _report_notes(error)
        return ExitCode.OUTPUT_CLOSED
    except UnicodeError as error:  # a job id, a label or a host that cannot be sent as it is
        warn(f"an argument is not text that can be sent: {error}")
        return ExitCode.USAGE
    except InputInvalid as error:
        _report(error)
        return ExitCode.USAGE
    except (PkiError, OSError) as error:
        _report(error)
        return ExitCode.FAILED
    except SystemExit as error:  # rich makes one of a reader of the help who has gone (Console.on_broken_pipe)
        if isinstance(error.__context__, BrokenPipeError):
            return ExitCode.OUTPUT_CLOSED
        raise
    except (KeyboardInterrupt, asyncio.CancelledError):
        return ExitCode.INTERRUPTED


def _report(error: Exception) -> None:
    """Print an error, and after it its notes (PEP 678)."""
    warn(sentence(error))
    _report_notes(error)


def _report_notes(error: Exception) -> None:
    for note in getattr(error, "__notes__", ()):
        warn(note)


def _without_command(given: Mapping[str, str | None], commands: Collection[str]) -> str:
    """Return the error for a command line without a command."""
    for option, value in given.items():
        if value in commands:
            return f"{option} takes {value!r} as its value, and then no command is left: give {option} VALUE {value}"
    return "no command is given: `workerctl --help` shows them"


def _in_words(error: cyclopts.CycloptsError) -> str:
    match error:
        case cyclopts.UnknownCommandError(unused_tokens=[option, *_]) if option.startswith("-"):
            name = option.partition("=")[0]
            return f"{name} is no option that stands before the command: a command's own options stand after its name."
        case cyclopts.UnusedCliTokensError(unused_tokens=[first, *_]):
            return f"{first!r} is one argument too many."
        case cyclopts.MissingArgumentError(argument=cyclopts.Argument() as wanted) if (
            wanted.field_info.is_positional and not wanted.tokens
        ):
            return f"'{' '.join(error.command_chain or ())}' needs {wanted.name.removeprefix('--').upper()}."
        case _:
            return " ".join(str(error).split())


def _add(app: App, entry_point: EntryPoint) -> None:
    try:
        app.command(entry_point.load(), name=entry_point.name)
    except (Exception, SystemExit) as error:  # a stranger's mistake must not take the other commands with it
        problem = " ".join(str(error).split()) or repr(error)
        warn(f"the command {entry_point.name!r} of {_package(entry_point)!r} cannot be loaded: {problem}")


def _ours_first(entry_point: EntryPoint) -> tuple[bool, str, str]:
    return _package(entry_point) != "workerd", _package(entry_point), entry_point.name


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "?"
