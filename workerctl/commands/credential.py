"""credential: have certificates issued with fewer rights and less time than one's own."""

import asyncio
import json
import os
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from pki.files import load_certificate, read_bytes
from pki.store import PkiFolder
from workerctl.durations import parse_duration
from workerctl.errors import UsageInvalid
from workerctl.output import format_lines, format_time
from workerctl.parameters import Injected, Output, split_rights
from workerctl.terminal import print_line, print_lines, warn

_ROUNDING = timedelta(minutes=1)  # the daemon's clock is not this machine's

app = App(name="credential", help="Have certificates issued with fewer rights and less time than your own.")


@app.command
async def issue(
    *,
    allow: Annotated[str, Parameter(help="What it is good for: rights, with commas between them.")],
    out: Annotated[str, Parameter(help="The folder for it, which --pki-dir can name then.")],
    ttl: Annotated[str | None, Parameter(help="For how long: a number and s, m, h or d. [default: 15m]")] = None,
    replace: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Replace the one that is there, which is kept aside."),
    ] = False,
    key_type: Annotated[Literal["p256", "ed25519"], Parameter(help="The kind of key to make.")] = "p256",
    output: Output = "text",
    context: Injected,
) -> None:
    """Have a certificate issued that can do less than yours, for a key that is made here and stays here.

    Example: `workerctl credential issue --allow status,stream-log --ttl 15m --out ./watch`
    """
    # What stands on cryptography is slow to import.
    from pki.narrowing import fit, make_key, make_request

    rights = split_rights(allow)
    if not rights:
        raise UsageInvalid("--allow names no right: `workerctl whoami` shows yours")
    if not out:
        raise UsageInvalid("--out names no folder")
    lifetime = None if ttl is None else parse_duration("--ttl", ttl)
    folder, user = PkiFolder(_absolute(out)), context.target.presented()
    if context.target.endpoint is None:  # one's own daemon, which may have no certificates before it is started
        await asyncio.to_thread(context.target.resolve)
    server_ca = read_bytes(context.target.pki().server_ca, "copy it from the daemon's machine")
    folder.require_room(user, server_ca, replace=replace)
    key, began = make_key(key_type), datetime.now(UTC)
    async with context.client() as client:
        issued = await client.issue_credential(make_request(key), rights, lifetime)
        endpoint = client.endpoint
    path = folder.take_up(user, fit(key, issued.certificate), server_ca, replace=replace)
    usage = ["workerctl", "--endpoint", endpoint, "--username", user, "--pki-dir", str(path.parents[1])]
    _print(path, usage, output)
    if lifetime is not None and load_certificate(path).not_valid_after_utc < began + lifetime - _ROUNDING:
        warn(f"it ends with your own certificate, sooner than --ttl {ttl} says")
    if "list" in rights and "status" not in rights:
        warn("it lists nothing: to see that a job is there takes the right status")


def _absolute(folder: str) -> Path:
    """Give a folder's name for whoever is in another one."""
    return Path(os.path.abspath(folder))


def _print(path: Path, usage: Sequence[str], output: Output) -> None:
    """Tell what a certificate is good for, and how it is used."""
    from pki.inventory import describe_now

    issued = describe_now(load_certificate(path))
    if output == "json":
        plain = {
            "file": str(path),
            "rights": issued.rights,
            "expires_at": issued.not_after.isoformat(),
            "serial": issued.serial,
            "usage": usage,
        }
        print_line(json.dumps(plain))
        return
    example = next((right for right in ("whoami", "list") if right in issued.rights), "COMMAND")
    lines = {
        "file": str(path),
        "rights": ", ".join(issued.rights),
        "expires": format_time(issued.not_after),
        "serial": issued.serial,
        "use it by": shlex.join([*usage, example]),
    }
    print_lines(format_lines(lines))
