"""What the daemon says of the contract's fields and calls, in the words of the command line."""

import dataclasses
from importlib.metadata import entry_points
from typing import Any

import pytest
from betterproto2 import Message
from cyclopts import App
from worker_api import worker

from workerctl.app import GROUP
from workerctl.wording import _RPCS, to_command_line


def options_of(command: str) -> set[str]:
    """Name the options and arguments that a command has."""
    first, *rest = command.split()
    app = App()
    app.command(entry_points(group=GROUP)[first].load(), name=first)
    for word in (first, *rest):
        app = app[word]
    arguments = [argument for argument in app.assemble_argument_collection() if argument.parse]
    return {name for argument in arguments for name in (*argument.names, argument.field_info.name.upper())}


@pytest.mark.parametrize("rpc", _RPCS)
def test_every_field_is_given_by_an_option_that_there_is(rpc: str) -> None:
    request: type[Message] = getattr(worker.v1, f"{rpc}Request")
    known, given = _RPCS[rpc].options, options_of(_RPCS[rpc].command)
    fields = {field.name for field in dataclasses.fields(request)}  # type: ignore[arg-type]
    assert set(known) <= fields
    assert set(known.values()) <= given
    # A field with an option of its own name is in the table, too.
    assert {name for name in fields if f"--{name.replace('_', '-')}" in given} - {"args", "last_bytes", "follow"} <= {
        *known
    }


@pytest.mark.parametrize(
    ("command", "subject", "said", "told"),
    [
        ("spawn", "timeout", "timeout must be greater", "--timeout-seconds must be greater"),
        ("run", "timeout", "timeout must be greater", "--timeout-seconds must be greater"),
        ("share", "user", "user is empty", "--with is empty"),
        ("policy test", "user", "user is empty", "--as is empty"),
        ("policy test", "", "name it in `job_id`, or leave `target` out", "name it in --job, or leave --on out"),
        ("stop", "", "name it in `job_id`", "name it in --uuid"),
        ("spawn", "", "leave `run_as` out", "leave --run-as out"),
        ("list", "", "leave `workerd-username` out", "leave --username out"),
        ("stop", "job", "job is `x`, see `man 1 y` or `Nap(a=b)`", "job is `x`, see `man 1 y` or `Nap(a=b)`"),
        ("status", "", "`List(all_owners=true)` shows", "`workerctl list --all-owners` shows"),
        (
            "stop",
            "",
            "`ExplainDecision(right=stop, job_id=1)`",
            "`workerctl policy test --action stop --job 1`",
        ),
        ("stop", "", "`WhoAmI()`", "`workerctl whoami`"),
        ("", "", "in `working_directory`", "in --working-directory"),
    ],
)
def test_contracts_words_become_those_of_the_command(command: str, subject: str, said: str, told: str) -> None:
    assert to_command_line(said, command, subject) == told


def test_unknown_command_has_the_words_of_all() -> None:
    told: Any = to_command_line("grace is too long", subject="grace")
    assert told == "--grace-seconds is too long"
