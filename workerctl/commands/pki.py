"""pki: make an authority, and certificates for users."""

from typing import Annotated

from cyclopts import App, Parameter

from pki.store import DEFAULT_TRUST_DOMAIN
from workerctl.output import print_line
from workerctl.parameters import Injected

app = App(name="pki", help="Make an authority, and certificates for users.")


@app.command
def init(
    *,
    host: Annotated[
        list[str] | None, Parameter(negative=(), help="A further name or address of the daemon; may be repeated.")
    ] = None,
    trust_domain: Annotated[str, Parameter(help="The SPIFFE trust domain of the users.")] = DEFAULT_TRUST_DOMAIN,
    context: Injected,
) -> None:
    """Make a server CA, a client CA and the daemon's certificate, in the folder that --pki-dir names.

    Example: `workerctl --pki-dir /etc/workerd/pki pki init --host build1.example.org`
    """
    folder = context.target.pki()
    folder.initialize(host or (), trust_domain)
    print_line(str(folder.path))


@app.command
def issue_client(
    name: Annotated[str, Parameter(help="The user's name.")],
    *,
    user_id: Annotated[
        str | None, Parameter(help="The UUID of a user who exists, to rename them. [default: a new user]")
    ] = None,
    context: Injected,
) -> None:
    """Make a user's certificate, and print its path; the key lies beside it.

    Example: `workerctl --pki-dir /etc/workerd/pki pki issue-client acrimon`
    """
    print_line(str(context.target.pki().issue_client(name, user_id)))
