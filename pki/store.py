"""The folder of an authority, and what is done in it: certificates are made, renewed and taken up.

What lies where is in `pki.layout`; what was issued, and how it is revoked, in `pki.register`.
"""

import os
import shlex
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pki.checks import is_trust_domain, make_lifetime, make_user_id, require_hosts
from pki.errors import (
    AlreadyExists,
    IdentityInvalid,
    InvalidTrustDomain,
    NameIssued,
    NotRenewable,
)
from pki.files import (
    key_path,
    load_certificate,
    load_pair,
    locked,
    locked_folder,
    make_folder,
    read_bytes,
    replace_file,
    replace_pair,
    require_free,
    write_pair,
)
from pki.identity import read_uri
from pki.moving import copy_public, require_apart
from pki.register import PkiRegister

TYPE_CHECKING = False
if TYPE_CHECKING:  # cryptography is slow to import and only needed where certificates are made
    from pki.authority import Credential

_CHOOSE_ANOTHER_FOLDER = "choose another folder"
DEFAULT_TRUST_DOMAIN = "workerd.internal"


@dataclass(frozen=True, slots=True)
class PkiFolder(PkiRegister):
    """An authority, or a user's share of one."""

    def initialize(self, hosts: Iterable[str] = (), trust_domain: str | None = None, users: Iterable[str] = ()) -> None:
        """Make both authorities and the server's certificate, for loopback, this host's name and further hosts.

        Where the authorities' folder is another, they may be there already, and sign for this daemon as well.

        Args:
            hosts: names and addresses.
            trust_domain: of the users; None for that of the authorities, or `DEFAULT_TRUST_DOMAIN`.
            users: the names of those who get a certificate at once.

        Raises:
            AlreadyExists: one of the files is there already; nothing has been written then.
            InvalidAuthority: the authorities' folder is within the daemon's.
            InvalidHost, InvalidTrustDomain, InvalidName: no certificate could hold this.
        """
        from pki.authority import issue_server

        hosts, users = tuple(hosts), tuple(users)
        if trust_domain is not None and not is_trust_domain(trust_domain):
            raise InvalidTrustDomain(trust_domain)
        require_hosts(hosts)
        for certificate in (self.server_ca, self.client_ca, self.server_certificate):
            require_free(certificate, self._advice_for_existing())
        if self.elsewhere is not None:
            require_apart(self.path, self.elsewhere)
        has_authorities = self.elsewhere is not None and self.client_authority.exists()
        if has_authorities and trust_domain not in (None, there := self.trust_domain()):
            raise AlreadyExists(self.client_authority, f"its trust domain is {there}: leave --trust-domain away")
        for user in users:
            require_free(self.client_certificate(user), _CHOOSE_ANOTHER_FOLDER)
        if not has_authorities:
            self._make_authorities(trust_domain or DEFAULT_TRUST_DOMAIN)
        local = ("localhost", socket.gethostname(), "127.0.0.1", "::1")
        server = issue_server(load_pair(self.server_authority), dict.fromkeys((*local, *hosts)))
        for user in users:
            self.issue_client(user)
        if self.elsewhere is not None:
            with locked(self.client_authority):
                copy_public(self)
        write_pair(self.server_certificate, server)  # last: with it, a server can be run from here

    def _make_authorities(self, trust_domain: str) -> None:
        from pki.authority import make_authority

        for certificate in (self.server_authority, self.client_authority):
            require_free(certificate, _CHOOSE_ANOTHER_FOLDER)
        if os.path.lexists(self.client_inventory):
            raise AlreadyExists(
                self.client_inventory, f"it is another authority's; move it away, or {_CHOOSE_ANOTHER_FOLDER}"
            )
        write_pair(self.server_authority, make_authority("workerd server CA", trust_domain))
        write_pair(self.client_authority, make_authority("workerd client CA", trust_domain))

    def issue_client(
        self, user_name: str, user_id: str | None = None, days: int | None = None, *, new_user: bool = False
    ) -> Path:
        """Issue a user's certificate.

        Args:
            user_name: for people, and for the names of the files.
            user_id: the UUID of a user who exists already, to give them another name; None for a new one.
            days: for how long it holds; None for `pki.authority.CLIENT_LIFETIME`.
            new_user: whether it is for a new user although the name was issued before.

        Returns:
            The certificate's path; the key lies beside it.

        Raises:
            AlreadyExists: the user has one.
            Missing: there is no authority here.
            InvalidName: no file could have this name.
            InvalidUserId: the id is no UUID.
            InvalidLifetime: no certificate could hold for so long.
            NameIssued: the name was issued before, and it is not said whose it is now.
            InventoryDamaged: it is not known what was issued before.
        """
        from pki.authority import CLIENT_LIFETIME, issue_client

        path = self.client_certificate(user_name)
        require_free(path, f"choose another name, or renew it with `{self._command('renew', user_name)}`")
        lifetime = make_lifetime(days, CLIENT_LIFETIME)
        user = make_user_id(user_id)
        authority = load_pair(self.client_authority)
        with locked(self.client_authority):
            require_free(path, "somebody else made it meanwhile")
            inventory = self._load_inventory(authority.certificate)
            if user_id is None and not new_user and (user_ids := inventory.user_ids_of(user_name)):
                raise NameIssued(user_name, user_ids)
            credential = issue_client(authority, user_name, user, lifetime)
            self._record_issued(credential.certificate)
            write_pair(path, credential)
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
        require_hosts(hosts)
        path = self.other_server_certificate(host)
        renew = self._command("renew", f"servers/{host}")
        require_free(path, f"renew it, with further names perhaps, with `{renew}`")
        lifetime = make_lifetime(days, SERVER_LIFETIME)
        write_pair(path, issue_server(load_pair(self.server_authority), hosts, lifetime))
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
        require_hosts(further_hosts)
        if path in (self.server_authority, self.client_authority):
            raise NotRenewable(path, "it is an authority's", "make another with `pki init` in another folder")
        for_user = path.parent.name == "clients"
        authority_path = self.client_authority if for_user else self.server_authority
        lifetime = make_lifetime(days, CLIENT_LIFETIME if for_user else SERVER_LIFETIME)
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
                self._load_inventory(authority.certificate, [path])
                credential = issue_client(authority, common_name(old), named.user_id, lifetime)
                self._record_issued(credential.certificate)
            else:
                credential = issue_server(authority, dict.fromkeys((*hosts, *further_hosts)), lifetime)
            replace_pair(path, credential)
        return path

    def require_room(self, user_name: str, server_ca: bytes, *, replace: bool = False) -> None:
        """See that a user's certificate that is issued elsewhere can be taken up here.

        Args:
            server_ca: the certificate of the authority of its daemon, in PEM.
            replace: whether it may take the place of another; of a full one, which can do more, it never does.

        Raises:
            AlreadyExists: something is there that stays.
            Missing: what is there and would be replaced is no whole pair.
            InvalidName: no file could have this name.
        """
        path = self.client_certificate(user_name)
        if os.path.lexists(path) and not _is_narrowed(path):
            require_free(path, f"it is a full one; {_CHOOSE_ANOTHER_FOLDER} for one that can do less")
        if replace and os.path.lexists(path):
            load_pair(path)
        else:
            require_free(path, f"{_CHOOSE_ANOTHER_FOLDER}, or have it replaced with --replace")
        if os.path.lexists(self.server_ca) and read_bytes(self.server_ca, _CHOOSE_ANOTHER_FOLDER) != server_ca:
            raise AlreadyExists(self.server_ca, _CHOOSE_ANOTHER_FOLDER)

    def take_up(self, user_name: str, credential: "Credential", server_ca: bytes, *, replace: bool = False) -> Path:
        """Put a user's certificate that was issued elsewhere here, with its key and what its daemon is verified with.

        Args:
            user_name: for the names of the files.
            server_ca: the certificate of the authority of its daemon, in PEM.
            replace: whether it may take the place of another, which is kept in the folder `replaced` beside.

        Returns:
            The certificate's path; the key lies beside it.

        Raises:
            AlreadyExists, Missing, InvalidName: as for `require_room`.
        """
        path = self.client_certificate(user_name)
        make_folder(self.path)
        with locked_folder(self.path):
            self.require_room(user_name, server_ca, replace=replace)
            if not os.path.lexists(self.server_ca):
                replace_file(self.server_ca, server_ca)
            if os.path.lexists(path):
                replace_pair(path, credential)
            else:
                write_pair(path, credential)
        return path

    def _advice_for_existing(self) -> str:
        if not self.is_initialized():
            return _CHOOSE_ANOTHER_FOLDER
        if self.elsewhere is not None and key_path(self.client_ca).exists():
            return f"`{self._command('move-authority', str(self.elsewhere))}` moves its authorities there"
        return (
            f"{self.path} holds an authority that can be used as it is, and nothing needs to be removed; "
            f"`{self._command('issue-client', 'NAME')}` adds a user, "
            f"`{self._command('renew', 'server --host NAME')}` a name of the daemon's"
        )

    def _command(self, verb: str, rest: str) -> str:
        return f"workerctl --pki-dir {shlex.quote(str(self.path))} pki {verb} {rest}"


def _is_narrowed(certificate: Path) -> bool:
    """Tell whether a certificate is good for some rights only."""
    from pki.inventory import describe_now

    return bool(describe_now(load_certificate(certificate)).rights)
