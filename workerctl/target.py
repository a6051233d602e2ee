"""Which daemon to talk to, and as whom."""

import contextlib
import getpass
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pki.files import stamp
from pki.store import PkiFolder
from pki.tls import client_context
from workerctl.errors import UsageInvalid
from workerctl.own_daemon import find_or_start, state_directory


@dataclass(frozen=True, slots=True)
class Target:
    """A daemon and a user.

    Attributes:
        endpoint: a URL `https://HOST:PORT`; None for the user's own daemon, which is started when none runs.
        username: whom to call for; None for the user of the certificate.
        pki_directory: where the certificates are; None for those of the user's own daemon.
        certificate: whose certificate to present; None for the user's who is called for, or if there is none here for
            the system user's. Where nobody is named, it is the only one here, if there is but one.
    """

    endpoint: str | None = None
    username: str | None = None
    pki_directory: Path | None = None
    certificate: str | None = None

    @property
    def name(self) -> str:
        """What to call the daemon."""
        return self.endpoint or f"your own on this machine ({state_directory()})"

    def options(self) -> list[str]:
        """Give the options that mean the same daemon and user, for another command line."""
        given = {
            "--endpoint": self.endpoint,
            "--username": self.username,
            "--certificate": self.certificate,
            "--pki-dir": self.pki_directory,
        }
        return [word for option, value in given.items() if value is not None for word in (option, str(value))]

    def resolve(self) -> tuple[str, int]:
        """Tell host and port, starting the user's own daemon if that is meant and none runs.

        Raises:
            UsageInvalid: the endpoint is no such URL, or there is none and the certificates are not the own daemon's.
            DaemonNotStarted: the daemon could not be started.
        """
        if self.endpoint is None and self.pki().path.absolute() != _own_pki():
            raise UsageInvalid(
                f"--pki-dir (or WORKERCTL_PKI_DIR) is {self.pki().path}, and no --endpoint (or WORKERCTL_ENDPOINT) is"
                " given: give the endpoint of the daemon that is meant, or leave the folder out for one of your own"
            )
        endpoint = self.endpoint or find_or_start()
        try:
            url = urlsplit(endpoint)
            port = url.port
        except ValueError as error:
            raise UsageInvalid(f"the endpoint {endpoint!r} is no URL: {error}") from error
        if url.username is not None:
            raise UsageInvalid(f"the endpoint {endpoint!r} names a user: give https://HOST:PORT, and --username")
        if (
            url.scheme != "https"
            or not url.hostname
            or port is None
            or url.path.strip("/")
            or set(endpoint) & set("?#")
        ):
            raise UsageInvalid(f"the endpoint {endpoint!r} is not of the form https://HOST:PORT")
        return url.hostname, port

    def pki(self) -> PkiFolder:
        """Tell which folder the certificates are in."""
        return PkiFolder(self.pki_directory or _own_pki())

    def tls(self) -> ssl.SSLContext:
        """Load what the connection needs.

        Raises:
            PkiError: a file cannot be read.
            UsageInvalid: no user is given, and the system's has no name.
        """
        return client_context(self.pki(), self.presented())

    def stamp(self) -> tuple[int, ...] | None:
        """Tell the certificate that is there to be presented from others that take its place, without reading it.

        Raises:
            InvalidName, UsageInvalid: as for `tls`.
        """
        return stamp(self.pki().client_certificate(self.presented()))

    def acting_for(self) -> str | None:
        """Tell for whom the daemon is to be asked to serve the calls; None for the user of the certificate.

        Raises:
            UsageInvalid: as for `tls`.
        """
        return None if self.username in (None, self.presented()) else self.username

    def presented(self) -> str:
        """Tell whose certificate to present: the name of its file.

        Raises:
            UsageInvalid: as for `tls`.
        """
        if self.certificate is not None:
            return self.certificate
        users = self.pki().users()
        if self.username is None:
            if len(users) == 1:  # yours, under whatever name you have logged in
                return users[0]
            return _login_name()
        if self.username not in users:
            with contextlib.suppress(UsageInvalid):  # then there is but the one to be missed
                if (login := _login_name()) in users:
                    return login
        return self.username


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # whichever it is: both are documented, for different versions of Python
        uid = os.getuid()
        raise UsageInvalid(
            f"the user id {uid} has no login name here: give --username, for your own daemon --username {uid}"
        ) from None


def _own_pki() -> Path:
    return state_directory() / "pki"
