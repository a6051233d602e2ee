"""Parameters that several commands share."""

from typing import Annotated

from cyclopts import Parameter

from workerctl.context import Context
from workerctl.output import OutputFormat

Injected = Annotated[Context, Parameter(parse=False)]
Output = Annotated[OutputFormat, Parameter(help="How to print the result: for people, or as JSON.")]
Uuid = Annotated[str, Parameter(help="The job's id, as spawn printed it.")]
CommandLine = Annotated[str, Parameter(help="The program and its arguments, taken as they are.")]


def split_rights(rights: str) -> list[str]:
    """Take `a,b` as a list."""
    return [right for right in (part.strip() for part in rights.split(",")) if right]
