"""whoami: show who the daemon takes you for."""

from datetime import UTC, datetime, timedelta

from pki.identity import expires_soon, read_any_uri
from workerctl.output import format_time, print_result
from workerctl.parameters import Injected, Output
from workerctl.terminal import warn

_SOON = timedelta(days=2)  # the time of day matters then


async def whoami(*, output: Output = "text", context: Injected) -> None:
    """Show the user that your certificate names, and its rights.

    Example: `workerctl --username acrimon whoami`
    """
    async with context.client() as client:
        me = await client.whoami()
    name = me.user.name if me.user else ""
    expires = _describe_end(me.certificate_expires_at, datetime.now(UTC))
    lines = [
        f"{name}, {me.spiffe_id}",
        *([f"through: {me.acting.name}, who acts for them"] if me.acting else []),
        *([f"roles: {', '.join(me.roles)}"] if me.roles else []),
        f"rights, on your own jobs where they concern one: {', '.join(me.rights)}",
        *([f"jobs run as: {me.run_as}"] if me.run_as else []),
        f"certificate expires: {expires}",
    ]
    print_result(me, lines, output)
    named = read_any_uri(me.spiffe_id)
    is_short = named is not None and named.rights is not None  # a narrowed certificate, on purpose
    if me.certificate_expires_at and not is_short and expires_soon(me.certificate_expires_at, datetime.now(UTC)):
        renewal = f"with `workerctl pki renew {name}`, where the authority is"
        warn(f"your certificate is about to expire ({expires}): have it renewed {renewal}")


def _describe_end(end: datetime | None, now: datetime) -> str:
    if end is None:
        return "?"
    return format_time(end) if end - now < _SOON else f"{end.astimezone():%Y-%m-%d}"
