"""Parameters that several commands share."""

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from workerctl.context import Context
from workerctl.output import OutputFormat

Injected = Annotated[Context, Parameter(parse=False)]
Output = Annotated[OutputFormat, Parameter(help="How to print the result: for people, or as JSON.")]
Uuid = Annotated[str, Parameter(help="The job's id, as spawn printed it.")]
CommandLine = Annotated[str, Parameter(help="The program and its arguments, taken as they are.")]


def split_at_commas(kind: Any, tokens: Sequence[Token]) -> list[str]:
    """Take `a,b` and repetitions of the option as one list. A converter for cyclopts."""
    del kind
    return [part for token in tokens for part in token.value.split(",")]


def split_rights(rights: str) -> list[str]:
    """Take `a,b` as a list."""
    return [right for right in (part.strip() for part in rights.split(",")) if right]
