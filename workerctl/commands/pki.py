"""pki: make an authority, and look after the certificates of users and daemons."""

import json
import shlex
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from pki.errors import AuthorityMissing
from pki.files import load_certificate
from pki.moving import move_authority as move
from pki.store import PkiFolder
from workerctl.context import Context
from workerctl.errors import UsageInvalid
from workerctl.output import format_lines, format_table, format_time
from workerctl.parameters import Injected, Output
from workerctl.terminal import print_line, print_lines, warn

TYPE_CHECKING = False
if TYPE_CHECKING:  # it stands on cryptography, which is slow to import
    from pki.inventory import Description

app = App(name="pki", help="Make an authority, and look after the certificates of users and daemons.")
Name = Annotated[str, Parameter(help="A user's name, or server, server-ca, client-ca, servers/HOST, clients/NAME.")]
Authority = Annotated[
    str | None,  # not a path, which would make the current folder of an empty text
    Parameter(env_var="WORKERCTL_AUTHORITY", help="Where the authorities are. [default: where `pki init` put them]"),
]
Days = Annotated[int | None, Parameter(help="For how long it holds. [default: 90 for users, 365 for daemons]")]


@app.command
def init(
    *,
    host: Annotated[
        list[str] | None, Parameter(negative=(), help="A further name or address of the daemon; may be repeated.")
    ] = None,
    trust_domain: Annotated[
        str | None, Parameter(help="The SPIFFE trust domain of the users. [default: workerd.internal]")
    ] = None,
    authority: Annotated[
        str | None,
        Parameter(
            env_var="WORKERCTL_AUTHORITY",
            help="A folder for the authorities, out of the daemon's reach. [default: that of --pki-dir]",
        ),
    ] = None,
    context: Injected,
) -> None:
    """Make a server CA, a client CA and the daemon's certificate, in the folder that --pki-dir names.

    Example: `workerctl --pki-dir /etc/workerd/pki pki init --host build1.example.org`
    """
    elsewhere = Path(authority).absolute() if authority else None
    folder = PkiFolder(context.target.pki().path, elsewhere)
    folder.initialize(host or (), trust_domain)
    print_line(str(folder.path))


@app.command
def move_authority(
    folder: Annotated[str, Parameter(help="The folder to move to, such as one on a removable disk.")],
    /,
    *,
    context: Injected,
) -> None:
    """Move the authorities' keys and the users' pairs out of the daemon's folder, and print where they are.

    Example: `workerctl --pki-dir /etc/workerd/pki pki move-authority /srv/authority`
    """
    moved = PkiFolder(Path(folder).absolute())
    old = context.target.pki()
    move(old, moved.path)
    print_line(str(moved.path))
    if users := moved.users():
        warn(
            f"the certificates of {', '.join(users)} are in {moved.path / 'clients'} now: hand them to their users; to"
            f" use one from here, copy it and its key to {old.path / 'clients'}"
        )


@app.command
def issue_client(
    name: Annotated[str, Parameter(help="The user's name.")],
    *,
    user_id: Annotated[
        str | None, Parameter(help="The UUID of a user who exists, to rename them. [default: a new user]")
    ] = None,
    new_user: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Give a name that was issued before to a new user.")
    ] = False,
    days: Days = None,
    authority: Authority = None,
    context: Injected,
) -> None:
    """Make a user's certificate, and print its path; the key lies beside it.

    Example: `workerctl --pki-dir /etc/workerd/pki pki issue-client acrimon`
    """
    if user_id is not None and new_user:
        raise UsageInvalid("give --user-id for a user who exists, or --new-user for another")
    print_line(str(_folder(context, authority).issue_client(name, user_id, days, new_user=new_user)))


@app.command
def issue_server(
    name: Annotated[str, Parameter(help="The name under which clients reach the daemon.")],
    *,
    host: Annotated[
        list[str] | None, Parameter(negative=(), help="A further name or address of the daemon; may be repeated.")
    ] = None,
    days: Days = None,
    authority: Authority = None,
    context: Injected,
) -> None:
    """Make the certificate of a daemon on another machine, and print its path; the key lies beside it.

    Example: `workerctl --pki-dir /etc/workerd/pki pki issue-server build2.example.org --host 192.0.2.7`
    """
    print_line(str(_folder(context, authority).issue_server(name, host or (), days)))


@app.command
def renew(
    name: Name,
    *,
    host: Annotated[
        list[str] | None, Parameter(negative=(), help="A name or address to add to a daemon's; may be repeated.")
    ] = None,
    days: Days = None,
    authority: Authority = None,
    context: Injected,
) -> None:
    """Replace a certificate and its key by new ones, for the same user or daemon; the old ones are kept aside.

    Example: `workerctl --pki-dir /etc/workerd/pki pki renew acrimon`
    """
    print_line(str(_folder(context, authority).renew(name, host or (), days)))


@app.command(name="list")
def list_certificates(*, authority: Authority = None, output: Output = "text", context: Injected) -> None:
    """Show the certificates in the folder, one for each line.

    Example: `workerctl --pki-dir /etc/workerd/pki pki list`
    """
    from pki.inventory import serial_text

    folder = _folder_to_look_at(context, authority)
    revoked = folder.revoked()
    if left_off := folder.left_off_list():
        again = context.command("pki", "revoke", serial_text(min(left_off)))
        warn(
            f"{folder.authority_crl} is not the newest list, and pardons {len(left_off)} that were revoked: put that"
            f" one back, or have it made again with `{again}`"
        )
    for copy in folder.outdated_copies():
        command = shlex.join(["install", "-m", "644", str(folder.authority_crl), str(copy)])
        warn(f"{copy} is not the newest list: copy that with `{command}`")
    described = [(_shown(path, folder), _describe(path, revoked)) for path in folder.certificates()]
    if output == "json":
        for path, description in described:
            print_line(json.dumps(_plain(path, description)))
        return
    rows = [("FILE", "SUBJECT", "FOR", "STATE", "EXPIRES", "SERIAL", "ONLY")]
    for path, each in described:
        expires, only = format_time(each.not_after), ",".join(each.rights) or "-"
        rows.append((str(path), each.subject, each.purpose, each.state, expires, each.serial, only))
    print_lines(format_table(rows))


@app.command
def show(name: Name, *, authority: Authority = None, output: Output = "text", context: Injected) -> None:
    """Describe a certificate.

    Example: `workerctl --pki-dir /etc/workerd/pki pki show acrimon`
    """
    folder = _folder_to_look_at(context, authority)
    path = folder.certificate(name)
    description = _describe(path, folder.revoked())
    if output == "json":
        print_line(json.dumps(_plain(_shown(path, folder), description)))
        return
    lines = {
        "file": str(path),
        "subject": description.subject,
        "for": description.purpose,
        "spiffe id": description.spiffe_id,
        "hosts": ", ".join(description.hosts),
        "only for": ", ".join(description.rights),
        "from": ", ".join(description.ancestors),
        "serial": description.serial,
        "holds": f"from {format_time(description.not_before)} to {format_time(description.not_after)}",
        "state": description.state,
    }
    print_lines(format_lines(lines))


@app.command
def revoke(
    name: Annotated[str, Parameter(help="A user's name or id, for all their certificates, or a serial number.")],
    *,
    authority: Authority = None,
    context: Injected,
) -> None:
    """Have users' certificates count no more, and print their serial numbers; running daemons see it at once.

    Example: `workerctl --pki-dir /etc/workerd/pki pki revoke acrimon`
    """
    from pki.inventory import serial_text

    folder = _folder(context, authority)
    revocations = folder.revoke(name)
    for serial, revoked in revocations.items():
        print_line(serial_text(serial))
        if revoked.was_revoked:
            warn(f"{serial_text(serial)} was revoked already")
        elif revoked.was_lost:
            warn(f"{serial_text(serial)} was revoked already, but not on the list any more: it is again")
        elif not revoked.is_known:
            warn(f"revoked {serial_text(serial)}, though no certificate with this serial number was issued here")
    for other, user_id in folder.inventory().other_names_of(revocations, datetime.now(UTC)).items():
        revoke_all = context.command("pki", "revoke", user_id)
        warn(f"the same user has certificates as {other}, which count: `{revoke_all}` revokes them too")
    if not folder.copy_list():
        warn(f"no daemon's folder is known: copy {folder.authority_crl} to that of each, as client-ca.crl")


def _folder(context: Context, authority: str | None) -> PkiFolder:
    """Return the folder of `--pki-dir` with its authorities' folder."""
    return context.target.pki().with_authority(Path(authority) if authority else None)


def _folder_to_look_at(context: Context, authority: str | None) -> PkiFolder:
    """Return the folder of `--pki-dir`, with its authorities' folder if that is there."""
    try:
        return _folder(context, authority)
    except AuthorityMissing as error:
        if authority:
            raise
        warn(f"only what the daemon has is shown: {error}")
        return context.target.pki()


def _shown(path: Path, folder: PkiFolder) -> Path:
    """Return a path to show, relative to the folder if it is within."""
    return path.relative_to(folder.path) if path.is_relative_to(folder.path) else path


def _describe(path: Path, revoked: frozenset[int]) -> "Description":
    from pki.inventory import describe_now

    return describe_now(load_certificate(path), revoked)


def _plain(path: Path, description: "Description") -> dict[str, Any]:
    """Turn a description into what JSON has; states are one word each, as the enums of api.proto."""
    plain = asdict(description)
    plain["state"] = description.state.replace(" ", "_")
    plain["not_before"] = description.not_before.isoformat()
    plain["not_after"] = description.not_after.isoformat()
    return {"file": str(path), **plain}
