"""Parameters that several commands share."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from workerctl.context import Context

OutputFormat = Literal["text", "json"]

Injected = Annotated[Context, Parameter(parse=False)]
Output = Annotated[OutputFormat, Parameter(help="How to print the result: for people, or as JSON.")]
Uuid = Annotated[str, Parameter(help="The job's id, as spawn printed it.")]


def split_at_commas(kind: Any, tokens: Sequence[Token]) -> list[str]:
    """Take `a,b` and repetitions of the option as one list."""
    del kind
    return [part for token in tokens for part in token.value.split(",")]


CommandLine = Annotated[str, Parameter(help="After --: the program and its arguments, taken as they are.")]
ProgramPath = Annotated[
    str, Parameter(help="The program: an absolute path, or a name in the job's PATH.", show_default=False)
]
Arguments = Annotated[
    list[str] | None,
    Parameter(
        name="--args",
        converter=split_at_commas,
        allow_leading_hyphen=True,
        negative=(),
        n_tokens=1,
        help="Arguments, split at commas; may be repeated. Use -- for arguments with commas.",
    ),
]
Environment = Annotated[
    list[str] | None,
    Parameter(
        name="--envs",
        converter=split_at_commas,
        negative=(),
        n_tokens=1,
        help="Environment variables NAME=VALUE, split at commas; may be repeated.",
    ),
]
WorkingDirectory = Annotated[
    str,
    Parameter(
        help="The absolute path to start in. [default: the home directory of the daemon's user]", show_default=False
    ),
]
Label = Annotated[str, Parameter(name="--name", help="A label to find the job by.", show_default=False)]
Timeout = Annotated[float | None, Parameter(help="Seconds after which the job is stopped. [default: never]")]
