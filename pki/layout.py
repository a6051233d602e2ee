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

The authorities may have a folder of their own. Then the daemon's folder has no key but its own:

    daemon's folder       server.crt, server.key, replaced/, and copies of server-ca.crt, client-ca.crt, client-ca.crl
                          authority    the path of the authorities' folder
    authorities' folder   everything else
                          daemons      the paths of the daemons' folders, one a line
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pki.checks import is_name
from pki.errors import AuthorityDiffers, AuthorityMissing, InvalidName, TrustDomainMissing
from pki.files import REPLACED, has_content, key_path, load_certificate, load_crl, read_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cryptography import x509

# cryptography is slow to import and only needed where certificates are made: what stands on it is imported there.


@dataclass(frozen=True, slots=True)
class PkiLayout:
    """The files of one authority, or of one user of it.

    Attributes:
        path: the folder that a daemon or a client reads.
        elsewhere: the authorities' folder; None if it is the same.
    """

    path: Path
    elsewhere: Path | None = None

    def with_authority(self, given: Path | None = None) -> Self:
        """Return this layout with the authorities' folder that is given, or else that the file `location` names.

        Raises:
            AuthorityMissing: the folder has no authority.
            AuthorityDiffers: the folder has another authority than the one that the daemon trusts.
            Missing: the file `location` cannot be read.
        """
        given = given or self.authority_named()
        if given is None or given.absolute() == self.path.absolute():
            return self
        found = replace(self, elsewhere=given.absolute())
        if not found.client_authority.exists():
            raise AuthorityMissing(given)
        for own, theirs in ((self.client_ca, found.client_authority), (self.server_ca, found.server_authority)):
            if own.exists() and load_certificate(own) != load_certificate(theirs):
                raise AuthorityDiffers(own, theirs)
        return found

    def authority_named(self) -> Path | None:
        """Return the folder that the file `location` names; None if there is no such file.

        Raises:
            Missing: it cannot be read.
        """
        if not os.path.lexists(self.location):
            return None
        return Path(os.fsdecode(read_bytes(self.location, "give --authority").strip()))

    @property
    def authority(self) -> Path:
        """The folder with the authorities' keys."""
        return self.elsewhere or self.path

    @property
    def location(self) -> Path:
        """The file with the path of the authorities' folder, if that is another folder."""
        return self.path / "authority"

    @property
    def daemons(self) -> Path:
        """The file in the authorities' folder with the paths of the daemons' folders, one a line."""
        return self.authority / "daemons"

    def daemons_named(self) -> list[Path]:
        """Return the folders that the file `daemons` names.

        Raises:
            Missing: it cannot be read.
        """
        if not os.path.lexists(self.daemons):
            return []
        return [Path(os.fsdecode(line)) for line in read_bytes(self.daemons, "restore it").splitlines()]

    def daemon_folders(self) -> list[Path]:
        """Return the folders of daemons that have copies of this authority's certificates.

        Raises:
            Missing: the certificates, or the file `daemons`, cannot be read.
        """
        found = dict.fromkeys(self.daemons_named())
        if self.elsewhere is not None:
            found[self.path] = None
        ours = read_bytes(self.client_authority, "restore it") if found else b""
        return [folder for folder in found if has_content(folder / self.client_ca.name, ours)]

    @property
    def server_authority(self) -> Path:
        """The certificate of the authority that signs servers, beside its key."""
        return self.authority / "server-ca.crt"

    @property
    def client_authority(self) -> Path:
        """The certificate of the authority that signs users, beside its key."""
        return self.authority / "client-ca.crt"

    @property
    def server_ca(self) -> Path:
        """The certificate that clients verify servers with."""
        return self.path / "server-ca.crt"

    @property
    def client_ca(self) -> Path:
        """The certificate that a daemon verifies users with."""
        return self.path / "client-ca.crt"

    @property
    def authority_crl(self) -> Path:
        """The list of revoked users' certificates, as the authority wrote it."""
        return self.authority / "client-ca.crl"

    @property
    def client_crl(self) -> Path:
        """The list of revoked users' certificates, as a daemon reads it."""
        return self.path / "client-ca.crl"

    @property
    def client_inventory(self) -> Path:
        """The inventory of what the authority of users issued and revoked."""
        return self.authority / "client-ca.issued.jsonl"

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
        own = {path.stem: path for path in (self.server_authority, self.client_authority, self.server_certificate)}
        return own.get(name) or self.client_certificate(name)

    def certificates(self) -> list[Path]:
        """The paths of all certificates that are here: authorities, servers, users, and what was renewed."""
        own = (self.server_authority, self.client_authority, self.server_certificate)
        patterns = ("servers/*.crt", "clients/*.crt", f"{REPLACED}/*.crt", f"*/{REPLACED}/*.crt")
        folders = dict.fromkeys((self.authority, self.path))
        found = (path for pattern in patterns for folder in folders for path in sorted(folder.glob(pattern)))
        return [*filter(Path.exists, own), *found]

    def is_of_user(self, path: Path) -> bool:
        """Return whether the path of a certificate is that of a user's."""
        return any(path.is_relative_to(folder / "clients") for folder in (self.authority, self.path))

    def users(self) -> list[str]:
        """The names of all users that have a certificate here, sorted."""
        return sorted(path.stem for path in (self.authority / "clients").glob("*.crt"))

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
            return trust_domain_of(load_certificate(self.client_authority))
        except TrustDomainMissing as error:
            raise TrustDomainMissing(self.client_authority) from error

    def crl(self) -> "x509.CertificateRevocationList | None":
        """The list of users' certificates that were revoked; None if there is no list.

        Raises:
            Missing: the list or the authority cannot be read.
        """
        if not os.path.lexists(self.authority_crl):
            return None
        return load_crl(self.authority_crl, load_certificate(self.client_authority))

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
        return self.authority / folder / f"{name}.crt"
