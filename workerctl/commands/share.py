"""share: let other users do things with your job."""

import json
from typing import Annotated

from cyclopts import Parameter

from workerctl.errors import UsageInvalid
from workerctl.output import format_table, to_plain
from workerctl.parameters import Injected, Output, Uuid, split_rights
from workerctl.terminal import print_line, print_lines


async def share(
    uuid: Uuid,
    *,
    with_: Annotated[str, Parameter(name="--with", help="The other user's name or id.", show_default=False)] = "",
    allow: Annotated[
        str, Parameter(help="All that the user may do with the job, as status,stream-log.", show_default=False)
    ] = "",
    revoke: Annotated[bool, Parameter(negative=(), show_default=False, help="Take everything back.")] = False,
    output: Output = "text",
    context: Injected,
) -> None:
    """Let another user do things with a job of yours, or take that back; without options, show who may do what.

    Example: `workerctl share 123e4567-e89b-42d3-a456-426614174000 --with bob --allow status,stream-log`
    """
    rights = split_rights(allow)
    if bool(with_) != (bool(rights) or revoke) or (rights and revoke):
        raise UsageInvalid("give --with together with --allow or with --revoke, or none of them")
    async with context.client() as client:
        shares = await client.share(uuid, with_, rights)
    if output == "json":
        print_line(json.dumps([to_plain(each) for each in shares]))
        return
    rows = [("USER", "ID", "RIGHTS")]
    for each in shares:
        name, user_id = (each.user.name, each.user.id or "-") if each.user else ("?", "?")
        rows.append((name, user_id, ", ".join(each.rights)))
    print_lines(format_table(rows))
