"""policy: find out what the daemon's policies say, and what they would say."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from workerctl.errors import UsageInvalid
from workerctl.exit_codes import ExitCode
from workerctl.output import print_result
from workerctl.parameters import Injected, Output

_STANDARD_INPUT = "-"
_RUN_AS = "run-as"

app = App(name="policy", help="Find out what the daemon's policies say, and what they would say.")


@app.command(name="test")
async def explain(
    file: Annotated[
        str,
        Parameter(
            help="Cedar policies to try besides those in force, and in the place of a file of the same name among them;"
            " - for standard input.",
            show_default=False,
            allow_leading_hyphen=True,
        ),
    ] = "",
    *,
    as_: Annotated[
        str, Parameter(name="--as", help="Who asks, by name or id. [default: you]", show_default=False)
    ] = "",
    action: Annotated[str, Parameter(help="The right that is asked for, as stop.")],
    job: Annotated[str | None, Parameter(help="The id of the job that it is asked for. [default: no job]")] = None,
    on: Annotated[
        str,
        Parameter(
            help="For run-as the system account [default: that of the user], for impersonate the other user.",
            show_default=False,
        ),
    ] = "",
    output: Output = "text",
    context: Injected,
) -> int:
    """Explain a decision: exit with 0 if it would be permitted, with 1 if not. Nothing is done.

    Example: `workerctl policy test new.cedar --as bob --action stop --job 123e4567-e89b-42d3-a456-426614174000`
    """
    policies = _read(file) if file else ""
    async with context.client() as client:
        answer = await client.explain(
            action, user=as_, job_id=job, target=on, policies=policies, policies_name=_name_of(file)
        )
    who = answer.user.name if answer.user else "?"
    account = answer.account
    target = on or (account.account if account and action == _RUN_AS else "")
    lines = [
        f"{_verdict(answer.permitted)}: {who}, {' '.join(filter(None, (action, job, target)))}",
        f"roles: {', '.join(answer.roles) or 'none'}",
        f"decided by: {_name(answer.policies)}",
    ]
    if account and action != _RUN_AS:
        lines.append(f"run-as {account.account}: {_verdict(account.permitted)}, decided by: {_name(account.policies)}")
    print_result(answer, lines, output)
    return ExitCode.OK if answer.permitted else ExitCode.NO


def _verdict(permitted: bool) -> str:
    return "permitted" if permitted else "denied"


def _name(policies: Sequence[str]) -> str:
    return ", ".join(policies) or "no policy, and what none permits is denied"


def _name_of(file: str) -> str:
    """Give the name under which policies of this file would be in force; standard input has none."""
    return "" if file == _STANDARD_INPUT else Path(file).name


def _read(file: str) -> str:
    if file.startswith("-") and file != _STANDARD_INPUT:
        raise UsageInvalid(f"there is no option {file}; a file of this name is ./{file}")
    try:
        text = sys.stdin.read() if file == _STANDARD_INPUT else Path(file).read_text()
    except UnicodeDecodeError as error:
        raise UsageInvalid(f"{file} is not UTF-8: {error}") from error
    if not text:  # which the daemon would take for one that is still being written
        raise UsageInvalid(f"{file} is empty: if there are to be no policies in it, write a comment")
    return text
