"""The folder that holds an authority: what lies where, and who may read it.

    server-ca.crt, server-ca.key     signs the daemon's certificate; clients verify it with server-ca.crt
    client-ca.crt, client-ca.key     signs users' certificates; the daemon verifies them with client-ca.crt
    client-ca.crl                    users' certificates that were revoked, if any was; signed by the client authority
    server.crt, server.key           the daemon's own
    clients/NAME.crt, NAME.key       one pair for each user
    servers/NAME.crt, NAME.key       one pair for each daemon on another machine, where it becomes server.crt and .key
    replaced/, */replaced/           pairs that were renewed, under the date of their renewal

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
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pki.errors import (
    IdentityInvalid,
    InvalidHost,
    InvalidLifetime,
    InvalidName,
    InvalidTrustDomain,
    InvalidUserId,
    NotRenewable,
    NotRevocable,
    TrustDomainMissing,
)
from pki.files import (
    REPLACED,
    key_path,
    load_certificate,
    load_crl,
    load_pair,
    locked,
    replace_file,
    replace_pair,
    require_free,
    write_pair,
)
from pki.identity import read_uri

# cryptography is slow to import and only needed where certificates are made: what stands on it is imported there.

_SERIAL = re.compile(r"[0-9A-Fa-f]{1,40}")  # RFC 5280 §4.1.2.2: at most 20 bytes
_LEAST_UNKNOWN_SERIAL = 1 << 60  # what authorities make at random is above; a name that is mistyped is not
_MOST_DAYS = 3650
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
    def client_crl(self) -> Path:
        """The list of users' certificates that were revoked."""
        return self.path / "client-ca.crl"

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
        if _NAME.fullmatch(user_name) is None:
            raise InvalidName(user_name)
        return self.path / "clients" / f"{user_name}.crt"

    def other_server_certificate(self, name: str) -> Path:
        """The path of the certificate of a daemon on another machine.

        Raises:
            InvalidName: no file could have this name.
        """
        if _NAME.fullmatch(name) is None:
            raise InvalidName(name)
        return self.path / "servers" / f"{name}.crt"

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
        _require_hosts(hosts)
        for certificate in (self.server_ca, self.client_ca, self.server_certificate):
            require_free(certificate, self._advice_for_existing())
        for user in users:
            require_free(self.client_certificate(user), _CHOOSE_ANOTHER_FOLDER)
        server_ca = make_authority("workerd server CA", trust_domain)
        client_ca = make_authority("workerd client CA", trust_domain)
        local = ("localhost", socket.gethostname(), "127.0.0.1", "::1")
        server = issue_server(server_ca, dict.fromkeys((*local, *hosts)))
        write_pair(self.server_ca, server_ca)
        write_pair(self.client_ca, client_ca)
        for user in users:
            self.issue_client(user)
        write_pair(self.server_certificate, server)  # last: with it, a server can be run from here

    def issue_client(self, user_name: str, user_id: str | None = None, days: int | None = None) -> Path:
        """Issue a user's certificate.

        Args:
            user_name: for people, and for the names of the files.
            user_id: the UUID of a user who exists already, to give them another name; None for a new one.
            days: for how long it holds; None for `pki.authority.CLIENT_LIFETIME`.

        Returns:
            The certificate's path; the key lies beside it.

        Raises:
            AlreadyExists: the user has one.
            Missing: there is no authority here.
            InvalidName: no file could have this name.
            InvalidUserId: the id is no UUID.
            InvalidLifetime: no certificate could hold for so long.
        """
        from pki.authority import CLIENT_LIFETIME, issue_client

        path = self.client_certificate(user_name)
        require_free(path, f"choose another name, or renew it with `{self._command('renew', user_name)}`")
        lifetime = _lifetime(days, CLIENT_LIFETIME)
        authority = load_pair(self.client_ca)
        write_pair(path, issue_client(authority, user_name, _user_id(user_id), lifetime))
        return path

    def issue_server(self, host: str, further_hosts: Iterable[str] = (), days: int | None = None) -> Path:
        """Issue the certificate of a daemon on another machine.

        Args:
            host: the name under which clients reach it, and that of the files.
            further_hosts: names and addresses under which clients reach it as well.
            days: for how long it holds; None for `pki.authority.SERVER_LIFETIME`.

        Returns:
            The certificate's path; the key lies beside it.

        Raises:
            AlreadyExists: the host has one.
            Missing: there is no authority here.
            InvalidName: no file could have this name.
            InvalidHost: no certificate could hold this.
            InvalidLifetime: no certificate could hold for so long.
        """
        from pki.authority import SERVER_LIFETIME, issue_server

        hosts = tuple(dict.fromkeys((host, *further_hosts)))
        _require_hosts(hosts)
        path = self.other_server_certificate(host)
        renew = self._command("renew", f"servers/{host}")
        require_free(path, f"renew it, with further names perhaps, with `{renew}`")
        lifetime = _lifetime(days, SERVER_LIFETIME)
        write_pair(path, issue_server(load_pair(self.server_ca), hosts, lifetime))
        return path

    def renew(self, name: str, further_hosts: Iterable[str] = (), days: int | None = None) -> Path:
        """Replace a certificate and its key by new ones for the same user, or for the same and further hosts.

        Those that were there are kept, under their date, in the folder `replaced` beside, and hold for as long as ever.

        Args:
            name: as for `certificate`.
            further_hosts: names and addresses that a server's certificate is to have besides.
            days: for how long it holds; None for what it is for new ones.

        Returns:
            The certificate's path; the key lies beside it.

        Raises:
            Missing: there is no such certificate, or no authority.
            NotRenewable: it is an authority's, or one that could not have been issued here.
            InvalidName, InvalidHost, InvalidLifetime: no certificate could hold this.
        """
        from pki.authority import CLIENT_LIFETIME, SERVER_LIFETIME, issue_client, issue_server
        from pki.inventory import common_name, names_in

        path, further_hosts = self.certificate(name), tuple(further_hosts)
        _require_hosts(further_hosts)
        if path in (self.server_ca, self.client_ca):
            raise NotRenewable(path, "it is an authority's", "make another with `pki init` in another folder")
        for_user = path.parent.name == "clients"
        authority_path = self.client_ca if for_user else self.server_ca
        lifetime = _lifetime(days, CLIENT_LIFETIME if for_user else SERVER_LIFETIME)
        with locked(authority_path):
            authority, old = load_pair(authority_path), load_certificate(path)
            uris, hosts = names_in(old)
            if for_user:
                if further_hosts:
                    raise NotRenewable(path, "a user has no hosts", "leave --host away")
                try:
                    named = read_uri(uris, self.trust_domain())
                except IdentityInvalid as error:
                    raise NotRenewable(path, str(error), "issue another with `pki issue-client`") from error
                if named.rights is not None:
                    raise NotRenewable(path, "it is narrowed", "issue another with `workerctl credential issue`")
                credential = issue_client(authority, common_name(old), named.user_id, lifetime)
            else:
                credential = issue_server(authority, dict.fromkeys((*hosts, *further_hosts)), lifetime)
            replace_pair(path, credential)
        return path

    def revoke(self, name: str) -> dict[int, Path | None]:
        """Put a user's certificates on the list of those that were revoked.

        Args:
            name: a user's, for all certificates of that name, those that were renewed included; or a serial number,
                hexadecimal, of a certificate that need not be here any more.

        Returns:
            The serial numbers, each with the certificate if it is here.

        Raises:
            NotRevocable: there is no such certificate, or it is no user's.
            Missing: the authority or the list cannot be read.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        from pki.revocation import add_revoked

        with locked(self.client_ca):
            authority = load_pair(self.client_ca)
            old = load_crl(self.client_crl, authority.certificate) if os.path.lexists(self.client_crl) else None
            meant = self._meant(name)
            crl = add_revoked(authority, old, meant, datetime.now(UTC))
            replace_file(self.client_crl, crl.public_bytes(Encoding.PEM))
        return meant

    def revoked(self) -> frozenset[int]:
        """The serial numbers of users' certificates that were revoked; nothing if there is no list.

        Raises:
            Missing: the list or the authority cannot be read.
        """
        from pki.revocation import serials_on

        if not os.path.lexists(self.client_crl):
            return frozenset()
        return serials_on(load_crl(self.client_crl, load_certificate(self.client_ca)))

    def _meant(self, name: str) -> dict[int, Path | None]:
        """Tell which certificates a name or a serial number means, for `revoke`."""
        here = {load_certificate(path).serial_number: path for path in self.certificates()}
        of_users = {serial: path for serial, path in here.items() if path.is_relative_to(self.path / "clients")}
        user = name.removeprefix("clients/")
        if found := {serial: path for serial, path in of_users.items() if _is_of_user(path, user)}:
            return dict(found)
        serial = _read_serial(name)
        if serial is None or (serial not in here and serial < _LEAST_UNKNOWN_SERIAL):
            advice = "give a name or a serial number that `pki list` shows, or the whole serial number of another"
            raise NotRevocable(name, "there is no such certificate here", advice)
        if serial in here and serial not in of_users:
            raise NotRevocable(name, "it is no user's", "only users' certificates are checked against a list")
        return {serial: of_users.get(serial)}

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

    def _advice_for_existing(self) -> str:
        if not self.is_initialized():
            return _CHOOSE_ANOTHER_FOLDER
        return (
            f"{self.path} holds an authority that can be used as it is, and nothing needs to be removed; "
            f"`{self._command('issue-client', 'NAME')}` adds a user, "
            f"`{self._command('renew', 'server --host NAME')}` a name of the daemon's"
        )

    def _command(self, verb: str, rest: str) -> str:
        return f"workerctl --pki-dir {shlex.quote(str(self.path))} pki {verb} {rest}"


def _lifetime(days: int | None, usual: timedelta) -> timedelta:
    if days is None:
        return usual
    if not 1 <= days <= _MOST_DAYS:
        raise InvalidLifetime(days, _MOST_DAYS)
    return timedelta(days=days)


def _read_serial(text: str) -> int | None:
    digits = text.replace(":", "")
    return int(digits, 16) if _SERIAL.fullmatch(digits) else None


def _is_of_user(certificate: Path, user_name: str) -> bool:
    """Tell whether a certificate is a user's, or was until it was renewed."""
    if certificate.parent.name != REPLACED:
        return certificate.stem == user_name
    return certificate.stem.rpartition("-")[0] == user_name


def _require_hosts(hosts: Iterable[str]) -> None:
    for host in hosts:
        if not _is_host(host):
            raise InvalidHost(host)


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True


def _user_id(text: str | None) -> str:
    try:
        return str(uuid.uuid4() if text is None else uuid.UUID(text))
    except ValueError:
        raise InvalidUserId(str(text)) from None
