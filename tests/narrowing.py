"""Narrowed credentials for tests: issued by a daemon, and laid down in a folder of their own."""

from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

from pki.narrowing import fit, make_key, make_request
from pki.store import PkiFolder
from tests.daemon import USER, Daemon
from workerctl.client import Client
from workerctl.target import Target


async def narrow(
    client: Client, daemon: Daemon, folder: Path, rights: Collection[str], lifetime: timedelta | None = None
) -> Target:
    """Have a certificate issued; give what it takes to call with it."""
    key = make_key("ed25519")
    issued = await client.issue_credential(make_request(key), rights, lifetime)
    credential = fit(key, issued.certificate)
    PkiFolder(folder).take_up(USER, credential, daemon.pki.server_ca.read_bytes())
    return Target(daemon.endpoint, USER, folder)
