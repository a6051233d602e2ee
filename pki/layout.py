"""The folder that holds an authority: what lies where, and who may read it.

    server-ca.crt, server-ca.key     signs the daemon's certificate; clients verify it with server-ca.crt
    client-ca.crt, client-ca.key     signs users' certificates; the daemon verifies them with client-ca.crt
    client-ca.crl                    users' certificates that were revoked, if any was; signed by the client authority
    client-ca.issued.jsonl           every certificate that was issued to users, and every revocation (`pki.issued`)
    server.crt, server.key           the daemon's own
    clients/NAME.crt, NAME.key       one pair for each user
    servers/NAME.crt, NAME.key       one pair for each daemon on another machine, where it becomes server.crt and .key
    replaced/, */replaced/           pairs that were renewed, under the date of their renewal

A user on another machine needs server-ca.crt and their own pair, in the same layout, and nothing else.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from pki.checks import is_name
from pki.errors import InvalidName, TrustDomainMissing
from pki.files import REPLACED, key_path, load_certificate, load_crl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cryptography import x509

# cryptography is slow to import and only needed where certificates are made: what stands on it is imported there.


@dataclass(frozen=True, slots=True)
class PkiLayout:
    """The files of one authority, or of one user of it."""

    path: Path

    @property
    def server_ca(self) -> Path:
        """The certificate of the authority that signs servers."""
        return self.path / "server-ca.crt"

    @property
    def client_ca(self) -> Path:
        """The certificate of the authority that signs users."""
        return self.path / "client-ca.crt"

    @property
    def client_crl(self) -> Path:
        """The list of users' certificates that were revoked."""
        return self.path / "client-ca.crl"

    @property
    def client_inventory(self) -> Path:
        """The inventory of what the authority of users issued and revoked."""
        return self.path / "client-ca.issued.jsonl"

    @property
    def server_certificate(self) -> Path:
        """The daemon's certificate."""
        return self.path / "server.crt"

    @property
    def files_of_server(self) -> tuple[Path, ...]:
        """All that a server reads."""
        return (self.server_certificate, key_path(self.server_certificate), self.client_ca, self.client_crl)

    def client_certificate(self, user_name: str) -> Path:
        """The path of a user's certificate.

        Raises:
            InvalidName: no file could have this name.
        """
        return self._named("clients", user_name)

    def other_server_certificate(self, name: str) -> Path:
        """The path of the certificate of a daemon on another machine.

        Raises:
            InvalidName: no file could have this name.
        """
        return self._named("servers", name)

    def certificate(self, name: str) -> Path:
        """The path of any certificate.

        Args:
            name: `server`, `server-ca`, `client-ca`, `servers/NAME`, `clients/NAME`, or a user's name alone.

        Raises:
            InvalidName: no file could have this name.
        """
        folder, separator, rest = name.partition("/")
        if separator and folder == "servers":
            return self.other_server_certificate(rest)
        if separator and folder == "clients":
            return self.client_certificate(rest)
        own = {path.stem: path for path in (self.server_ca, self.client_ca, self.server_certificate)}
        return own.get(name) or self.client_certificate(name)

    def certificates(self) -> list[Path]:
        """The paths of all certificates that are here: authorities, servers, users, and what was renewed."""
        own = (path for path in (self.server_ca, self.client_ca, self.server_certificate) if path.exists())
        patterns = ("servers/*.crt", "clients/*.crt", f"{REPLACED}/*.crt", f"*/{REPLACED}/*.crt")
        return [*own, *(path for pattern in patterns for path in sorted(self.path.glob(pattern)))]

    def users(self) -> list[str]:
        """The names of all users that have a certificate here, sorted."""
        return sorted(path.stem for path in (self.path / "clients").glob("*.crt"))

    def is_initialized(self) -> bool:
        """Whether a server can be run from here."""
        return self.server_certificate.exists() and self.client_ca.exists()

    def trust_domain(self) -> str:
        """The trust domain that users must be of.

        Raises:
            Missing: there is no authority here.
        """
        from pki.authority import trust_domain_of

        try:
            return trust_domain_of(load_certificate(self.client_ca))
        except TrustDomainMissing as error:
            raise TrustDomainMissing(self.client_ca) from error

    def crl(self) -> "x509.CertificateRevocationList | None":
        """The list of users' certificates that were revoked; None if there is no list.

        Raises:
            Missing: the list or the authority cannot be read.
        """
        if not os.path.lexists(self.client_crl):
            return None
        return load_crl(self.client_crl, load_certificate(self.client_ca))

    def revoked(self) -> frozenset[int]:
        """The serial numbers of users' certificates that were revoked; nothing if there is no list.

        Raises:
            Missing: as for `crl`.
        """
        from pki.revocation import serials_on

        crl = self.crl()
        return frozenset() if crl is None else serials_on(crl)

    def _named(self, folder: str, name: str) -> Path:
        if not is_name(name):
            raise InvalidName(name)
        return self.path / folder / f"{name}.crt"
