"""The command `workerd`."""

import json
import os
import shlex
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from pki.errors import PkiError
from system.ownership import Untrusted, require_trusted
from workerd.engine import linux, signals
from workerd.engine.errors import EngineError
from workerd.engine.job import DEFAULT_GRACE_SECONDS, Durability
from workerd.engine.storage import DEFAULT_STORAGE, Storage, default_total_bytes
from workerd.errors import ConfigurationInvalid, DaemonError
from workerd.limits import DEFAULT_LIMITS, Limits
from workerd.log import configure_log
from workerd.settings import (
    DEFAULT_KEEPALIVE_SECONDS,
    DEFAULT_LISTEN,
    DEFAULT_MAX_AUDIT_BYTES,
    default_state_directory,
    make_settings,
)

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
    state_dir: Annotated[
        str | None, Parameter(help="Where jobs are kept. [default: workerd in the user's state home]")
    ] = None,
    pki_dir: Annotated[str | None, Parameter(help="Where certificates are. [default: pki in --state-dir]")] = None,
    policy_dir: Annotated[
        str | None, Parameter(help="Where further policies are. [default: policies in --state-dir]")
    ] = None,
    roles: Annotated[
        dict[str, list[str]] | None,
        Parameter(negative=(), help="Who has a role, by name or id, as --roles.admin acrimon,bob; may be repeated."),
    ] = None,
    grace_seconds: Annotated[
        float, Parameter(help="Between SIGTERM and SIGKILL when nobody says how long.")
    ] = DEFAULT_GRACE_SECONDS,
    max_log_bytes: Annotated[
        int, Parameter(help="What one log may take of the disk; beyond it the oldest output goes. 0: any amount.")
    ] = DEFAULT_STORAGE.max_log_bytes,
    max_total_bytes: Annotated[
        int | None,
        Parameter(
            help="What all jobs may take; beyond it those that ended first are removed. 0: any amount."
            " [default: 80% of the file system]",
            show_default=False,
        ),
    ] = None,
    max_age_seconds: Annotated[
        float, Parameter(help="How long after their end jobs are removed. 0: never.")
    ] = DEFAULT_STORAGE.max_age_seconds,
    durability: Annotated[
        Durability, Parameter(help="When logs are forced to the disk: at a job's end, or also every 5 s.")
    ] = DEFAULT_STORAGE.durability,
    keepalive_seconds: Annotated[
        float, Parameter(help="After how much silence a connection is dead.")
    ] = DEFAULT_KEEPALIVE_SECONDS,
    run_as: Annotated[
        str,
        Parameter(
            help="The account that jobs run as when nobody names one. [default: the daemon's own]", show_default=False
        ),
    ] = "",
    accounts: Annotated[
        dict[str, str] | None,
        Parameter(negative=(), help="The account of one user's jobs, as --accounts.acrimon build; may be repeated."),
    ] = None,
    processes: Annotated[int, Parameter(help="How many processes answer calls.")] = 1,
    max_audit_bytes: Annotated[
        int, Parameter(help="What the audit trail may take; beyond it the oldest lines go. 0: any amount.")
    ] = DEFAULT_MAX_AUDIT_BYTES,
    audit_witness: Annotated[
        str,
        Parameter(
            help="Where to copy the audit trail's heads: journal (the system's), or a file. [default: nowhere]",
            show_default=False,
        ),
    ] = "",
    debuggable: Annotated[
        bool,
        Parameter(
            negative=(), show_default=False, help="Let programs of the daemon's account trace it and read its memory."
        ),
    ] = False,
    drain: Annotated[
        bool,
        Parameter(
            negative=(),
            show_default=False,
            help="Have the running daemon take no new jobs, wait for the last one, and end.",
        ),
    ] = False,
    limits: Annotated[Limits, Parameter(name="*", group="Limits")] = DEFAULT_LIMITS,
) -> int:
    """Run programs as jobs, for those who have a certificate.

    Prints one line on standard output once it serves; everything else goes to standard error. SIGTERM and SIGINT end
    it and leave its jobs running: the next workerd on the same state directory takes them up again.

    Example: `workerd --listen 127.0.0.1:7005 --state-dir /var/lib/workerd`
    """
    state_directory = Path(state_dir) if state_dir else default_state_directory()
    if max_total_bytes is None:
        max_total_bytes = default_total_bytes(state_directory)
    settings = make_settings(
        listen=listen,
        state_dir=state_directory,
        pki_dir=Path(pki_dir) if pki_dir else None,
        policy_dir=Path(policy_dir) if policy_dir else None,
        roles=roles or {},
        grace_seconds=grace_seconds,
        storage=Storage(max_log_bytes, max_total_bytes, max_age_seconds, durability),
        keepalive_seconds=keepalive_seconds,
        processes=processes,
        run_as=run_as,
        accounts=accounts or {},
        limits=limits,
        max_audit_bytes=max_audit_bytes,
        audit_witness=audit_witness,
        debuggable=debuggable,
    )
    try:
        if drain:
            from workerd.drain import drain as drain_daemon

            return drain_daemon(settings.state_directory)
        if not debuggable:
            linux.hide_memory()
        import uvloop

        from workerd.descriptors import fit, warn_of_lowered
        from workerd.resource_limits import max_descriptors, raise_soft_limits

        raise_soft_limits()
        fitting = fit(settings.limits, max_descriptors())
        warn_of_lowered(settings.limits, fitting, max_descriptors())
        settings = replace(settings, limits=fitting)

        if settings.processes == 1:
            from workerd.server import serve
        else:
            from workerd.processes import serve
        uvloop.run(serve(settings))
    except ConfigurationInvalid:
        raise
    except (DaemonError, EngineError, PkiError, Untrusted) as error:
        print(f"workerd: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError as error:
        print(f"workerd: {_in_words(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


@app.meta.default
def with_configuration(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[str | None, Parameter(help="A TOML file with the same settings.")] = None,
) -> int:
    """Read the configuration file, if any, and run."""
    if config:
        try:
            require_trusted(Path(config))
            settings = tomllib.loads(Path(config).read_text())
        except Untrusted as error:
            raise ConfigurationInvalid(f"the configuration file cannot be used: {error}") from error
        except ValueError as error:  # a UnicodeDecodeError, too
            raise ConfigurationInvalid(f"the configuration file {config} is not TOML: {error}") from error
        try:
            app.config = (*app.config, cyclopts.config.Dict(settings | _quote_users(settings), source=config))
            return int(app(tokens))
        except ConfigurationInvalid as error:
            raise ConfigurationInvalid(_with_file(str(error), tokens, settings, config)) from error
    return int(app(tokens))


def _quote_users(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the table of accounts as JSON, in which a user's name may have a dot.

    Raises:
        ConfigurationInvalid: it is not a table of strings.
    """
    if (table := settings.get("accounts")) is None:
        return {}
    if not isinstance(table, dict):
        raise ConfigurationInvalid(f'--accounts: {table!r} is not a table: write [accounts], and acrimon = "build"')
    for user, account in table.items():
        if not isinstance(account, str):
            problem = f'{account!r} is not the name of an account: write "NAME" = "ACCOUNT", both in quotes'
            raise ConfigurationInvalid(f"--accounts.{user}: {problem}")
    return {"accounts": json.dumps(table)}


def _with_file(error: str, tokens: Sequence[str], settings: Mapping[str, Any], file: str) -> str:
    """Return an error about a setting of the file with the file's name, and the setting as the file names it."""
    option, _, problem = error.partition(" ")
    name = option.removeprefix("--").rstrip(":").partition(".")[0]
    variable = f"WORKERD_{name.upper().replace('-', '_')}"
    is_given = any(token.startswith(f"--{name}") for token in tokens) or any(
        each == variable or each.startswith(f"{variable}_") for each in os.environ
    )
    if name not in settings or is_given:
        return error
    return f"{file}: {option.removeprefix('--')} {problem}"


def _in_words(error: OSError) -> str:
    return f"{error.filename or 'the system'}: {error.strerror or error}"


def _explain(error: cyclopts.CycloptsError) -> str:
    match error:
        case cyclopts.CoercionError(argument=cyclopts.Argument(name="--roles"), token=cyclopts.Token(value=users)):
            role, separator, names = (users or "NAME").rpartition("=")
            example = f"--roles.{role if separator else 'admin'} {shlex.quote(names or 'NAME')}"
            return f"--roles does not say who has which role: write {example} for instance."
        case cyclopts.CoercionError(argument=cyclopts.Argument(name=str(name))) if name.startswith("--accounts"):
            example = """--accounts.acrimon build, or --accounts '{"first.last": "build"}'"""
            return f"{name} does not say as which account a user's jobs run: write {example} for instance."
        case _:
            return " ".join(str(error).split())


def main() -> None:
    """Run the command."""
    signals.set_for_daemon()
    configure_log()
    app.print_error = app.meta.print_error = False  # an error is one line here, not a box
    app.exit_on_error = app.meta.exit_on_error = False
    try:
        sys.exit(app.meta())
    except ConfigurationInvalid as error:
        print(f"workerd: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(_USAGE)
    except OSError as error:
        print(f"workerd: {_in_words(error)}", file=sys.stderr)  # noqa: T201
        sys.exit(_USAGE)
    except cyclopts.CycloptsError as error:
        print(f"workerd: {_explain(error)} See --help.", file=sys.stderr)  # noqa: T201
        sys.exit(_USAGE)


if __name__ == "__main__":
    main()
