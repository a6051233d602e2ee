"""The folder that holds an authority: what lies where, and who may read it.

    server-ca.crt, server-ca.key     signs the daemon's certificate; clients verify it with server-ca.crt
    client-ca.crt, client-ca.key     signs users' certificates; the daemon verifies them with client-ca.crt
    server.crt, server.key           the daemon's own
    clients/NAME.crt, NAME.key       one pair for each user

A user on another machine needs server-ca.crt and their own pair, in the same layout, and nothing else.
"""

import ipaddress
import os
import re
import shlex
import socket
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pki.errors import (
    AlreadyExists,
    InvalidHost,
    InvalidName,
    InvalidTrustDomain,
    InvalidUserId,
    Missing,
    TrustDomainMissing,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # cryptography is slow to import and only needed where certificates are made
    from cryptography import x509

    from pki.authority import Credential

_CHOOSE_ANOTHER_FOLDER = "choose another folder"
DEFAULT_TRUST_DOMAIN = "workerd.internal"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")  # SPIFFE-ID §2.1
_NAME = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._@-]{0,63}")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")  # RFC 1123 §2.1, _ and *.


@dataclass(frozen=True, slots=True)
class PkiFolder:
    """The files of one authority."""

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
    def server_certificate(self) -> Path:
        """The daemon's certificate."""
        return self.path / "server.crt"

    def client_certificate(self, user_name: str) -> Path:
        """The path of a user's certificate.

        Raises:
            InvalidName: no file could have this name.
        """
        if _NAME.fullmatch(user_name) is None:
            raise InvalidName(user_name)
        return self.path / "clients" / f"{user_name}.crt"

    def users(self) -> list[str]:
        """The names of all users that have a certificate here, sorted."""
        return sorted(path.stem for path in (self.path / "clients").glob("*.crt"))

    def is_initialized(self) -> bool:
        """Whether a server can be run from here."""
        return self.server_certificate.exists() and self.client_ca.exists()

    def initialize(
        self, hosts: Iterable[str] = (), trust_domain: str = DEFAULT_TRUST_DOMAIN, users: Iterable[str] = ()
    ) -> None:
        """Make both authorities and the server's certificate, for loopback, this host's name and further hosts.

        Args:
            hosts: names and addresses.
            trust_domain: of the users.
            users: the names of those who get a certificate at once.

        Raises:
            AlreadyExists: one of the files is there already; nothing has been written then.
            InvalidHost, InvalidTrustDomain, InvalidName: no certificate could hold this.
        """
        from pki.authority import issue_server, make_authority

        hosts, users = tuple(hosts), tuple(users)
        if _TRUST_DOMAIN.fullmatch(trust_domain) is None:
            raise InvalidTrustDomain(trust_domain)
        for host in hosts:
            if not _is_host(host):
                raise InvalidHost(host)
        for certificate in (self.server_ca, self.client_ca, self.server_certificate):
            self._require_free(certificate, self._advice_for_existing())
        for user in users:
            self._require_free(self.client_certificate(user), _CHOOSE_ANOTHER_FOLDER)
        server_ca = make_authority("workerd server CA", trust_domain)
        client_ca = make_authority("workerd client CA", trust_domain)
        local = ("localhost", socket.gethostname(), "127.0.0.1", "::1")
        server = issue_server(server_ca, dict.fromkeys((*local, *hosts)))
        self._write(self.server_ca, server_ca)
        self._write(self.client_ca, client_ca)
        for user in users:
            self.issue_client(user)
        self._write(self.server_certificate, server)  # last: with it, a server can be run from here

    def issue_client(self, user_name: str, user_id: str | None = None) -> Path:
        """Issue a user's certificate.

        Args:
            user_name: for people, and for the names of the files.
            user_id: the UUID of a user who exists already, to give them another name; None for a new one.

        Returns:
            The certificate's path; the key lies beside it.

        Raises:
            AlreadyExists: the user has one.
            Missing: there is no authority here.
            InvalidName: no file could have this name.
            InvalidUserId: the id is no UUID.
        """
        from pki.authority import issue_client

        path = self.client_certificate(user_name)
        self._require_free(path, "choose another name, or remove certificate and key to issue them anew")
        authority = self._read(self.client_ca)
        self._write(path, issue_client(authority, user_name, _user_id(user_id)))
        return path

    def trust_domain(self) -> str:
        """The trust domain that users must be of.

        Raises:
            Missing: there is no authority here.
        """
        from pki.authority import trust_domain_of

        try:
            return trust_domain_of(_load_certificate(self.client_ca))
        except TrustDomainMissing as error:
            raise TrustDomainMissing(self.client_ca) from error

    def _advice_for_existing(self) -> str:
        if not self.is_initialized():
            return _CHOOSE_ANOTHER_FOLDER
        command = f"workerctl --pki-dir {shlex.quote(str(self.path))} pki issue-client NAME"
        return (
            f"{self.path} holds an authority that can be used as it is, and nothing needs to be removed; "
            f"`{command}` adds a user; hosts cannot be added: for another host choose another folder"
        )

    def _require_free(self, certificate: Path, advice: str) -> None:
        for path in (certificate, key_path(certificate)):
            if os.path.lexists(path):
                raise AlreadyExists(path, advice)

    def _write(self, certificate: Path, credential: "Credential") -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate.parent.mkdir(mode=0o700, exist_ok=True)
        # The key first: a certificate that is there has its key.
        _write_new(key_path(certificate), credential.key_pem(), 0o600)
        _write_new(certificate, credential.certificate_pem(), 0o644)

    def _read(self, certificate: Path) -> "Credential":
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        from pki.authority import Credential

        path = key_path(certificate)
        advice = f"put the key of {certificate.name} there"
        loaded = _load_certificate(certificate)
        try:
            key = load_pem_private_key(read_bytes(path, advice), password=None)
        except (ValueError, TypeError) as error:
            raise Missing(path, "it holds no key that can be read", advice) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Missing(path, "it holds no elliptic-curve key", advice)
        if loaded.public_key() != key.public_key():
            raise Missing(certificate, "it does not fit its key", f"put the key of {certificate.name} beside it")
        return Credential(key, loaded)


def _load_certificate(path: Path) -> "x509.Certificate":
    from cryptography import x509

    advice = f"make an authority with `workerctl --pki-dir {shlex.quote(str(path.parent))} pki init`"
    try:
        return x509.load_pem_x509_certificate(read_bytes(path, advice))
    except ValueError as error:
        raise Missing(path, "it holds no certificate that can be read", "put back the one that was there") from error


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True


def key_path(certificate: Path) -> Path:
    """Tell where the private key of a certificate lies."""
    return certificate.with_name(certificate.stem + ".key")


def _user_id(text: str | None) -> str:
    try:
        return str(uuid.uuid4() if text is None else uuid.UUID(text))
    except ValueError:
        raise InvalidUserId(str(text)) from None


def read_bytes(path: Path, advice: str) -> bytes:
    """Read a file.

    Raises:
        Missing: it cannot be read; the advice goes with it.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise Missing(path, error.strerror or str(error), advice) from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise AlreadyExists(path, "somebody else made it meanwhile") from None
    with open(descriptor, "wb") as file:
        file.write(data)
