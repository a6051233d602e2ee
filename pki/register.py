"""The certificates that an authority issued to users: recording them, and revoking them."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pki.checks import LEAST_UNKNOWN_SERIAL, read_serial
from pki.errors import InvalidName, ListNotCopied, Missing, NotRevocable, PkiError
from pki.files import REPLACED, has_content, load_certificate, load_pair, locked, read_bytes, replace_file
from pki.layout import PkiLayout

TYPE_CHECKING = False
if TYPE_CHECKING:  # cryptography is slow to import and only needed where certificates are made
    from cryptography import x509

    from pki.issued import Inventory

_NO_USER_S, _NOT_ON_LIST = "it is no user's", "only users' certificates are checked against a list"


@dataclass(frozen=True, slots=True)
class Revoked:
    """What was there of a certificate that was revoked.

    Attributes:
        certificate: the certificate; None if it is not here.
        was_revoked: whether it was revoked before.
        was_lost: whether it was revoked before, and the list did not have it any more.
        is_known: whether it is known to have been issued.
    """

    certificate: Path | None
    was_revoked: bool = False
    was_lost: bool = False
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class PkiRegister(PkiLayout):
    """The files of an authority, with its inventory."""

    def revoke(self, name: str) -> dict[int, Revoked]:
        """Put a user's certificates on the list of those that were revoked.

        Args:
            name: a user's name or id, for all certificates that were ever issued with it; or a serial number,
                hexadecimal. None of them needs to be here any more.

        Returns:
            The serial numbers, each with what was there; with them those that were revoked before and had got lost.

        Raises:
            NotRevocable: there is no such certificate, or it is no user's.
            Missing: the authority or the list cannot be read.
            InventoryDamaged: it is not known what was issued.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        from pki.inventory import serial_text
        from pki.issued import Revoked as Event
        from pki.issued import append_events
        from pki.revocation import add_revoked, number_of, serials_on

        with locked(self.client_authority):
            authority = load_pair(self.client_authority)
            old = self.crl()
            before = frozenset() if old is None else serials_on(old)
            here = {load_certificate(path).serial_number: path for path in self.certificates()}
            inventory = self._load_inventory(authority.certificate, here.values())
            meant = self._meant(name, here, inventory)
            lost = inventory.revoked - before
            number = max(inventory.crl_number, number_of(old)) + 1
            added = (before | meant.keys()) - inventory.revoked
            append_events(self.client_inventory, [Event(tuple(map(serial_text, sorted(added))), number)])
            crl = add_revoked(authority, old, (*meant, *lost), datetime.now(UTC), number)
            replace_file(self.authority_crl, crl.public_bytes(Encoding.PEM))
        return {
            serial: Revoked(path, serial in before, serial in lost, serial in here or serial in inventory.issued)
            for serial, path in {**dict.fromkeys(sorted(lost)), **meant}.items()
        }

    def copy_list(self) -> list[Path]:
        """Copy the authority's list of revoked certificates to the folders of its daemons.

        Returns:
            The folders that have the list; none if no daemon is known.

        Raises:
            ListNotCopied: it cannot be written to one of them. The others have it.
        """
        own = [self.path] if self.elsewhere is None and self.is_initialized() else []
        failed: ListNotCopied | None = None
        with locked(self.client_authority):
            folders = self.daemon_folders()
            for folder in folders if self.authority_crl.exists() else ():
                copy = folder / self.client_crl.name
                try:
                    replace_file(copy, read_bytes(self.authority_crl, "revoke once more"))
                except (OSError, PkiError) as error:
                    failed = ListNotCopied(self.authority_crl, copy, str(error))
        if failed is not None:
            raise failed
        return own + folders

    def outdated_copies(self) -> list[Path]:
        """Return the lists of revoked certificates in daemons' folders that differ from the authority's.

        Raises:
            Missing: the authority's cannot be read.
        """
        if not self.authority_crl.exists():
            return []
        newest = read_bytes(self.authority_crl, "put back the one that was there")
        copies = [folder / self.client_crl.name for folder in self.daemon_folders()]
        return [copy for copy in copies if not has_content(copy, newest)]

    def inventory(self) -> "Inventory":
        """Read what was issued to users and revoked, as far as it is recorded.

        Raises:
            Missing, InventoryDamaged: it cannot be read.
        """
        from pki.issued import read_inventory

        return read_inventory(self.client_inventory)

    def left_off_list(self) -> frozenset[int]:
        """The serial numbers of certificates that were revoked, and are not on the list: it is an older one, or gone.

        Raises:
            Missing, InventoryDamaged: the list, the authority or the inventory cannot be read.
        """
        revoked = self.inventory().revoked
        return revoked - self.revoked() if revoked else frozenset()

    def _load_inventory(self, authority: "x509.Certificate", found: Iterable[Path] = ()) -> "Inventory":
        """Read the inventory, after recording certificates in it that were issued by an earlier version; locked.

        Args:
            authority: whose certificates are recorded.
            found: files to look at. Where there is no inventory yet, it is begun with all that are here.
        """
        from pki.issued import append_events, issued_of

        inventory = self.inventory()
        if not os.path.lexists(self.client_inventory):
            found = self.certificates()
        events = []
        for path in found:
            if not self.is_of_user(path):
                continue
            with contextlib.suppress(Missing):
                certificate = load_certificate(path)
                if certificate.serial_number not in inventory.issued and _is_signed(certificate, authority):
                    events.append(issued_of(certificate))
        append_events(self.client_inventory, filter(None, events))
        return self.inventory() if events else inventory

    def _record_issued(self, certificate: "x509.Certificate") -> None:
        """Record a certificate that is about to be issued; locked."""
        from pki.issued import append_events, issued_of

        append_events(self.client_inventory, filter(None, [issued_of(certificate)]))

    def _meant(self, name: str, here: Mapping[int, Path], inventory: "Inventory") -> dict[int, Path | None]:
        """Tell which certificates a name, a user id or a serial number means, for `revoke`."""
        self._require_user_s(name)
        of_users = {serial: path for serial, path in here.items() if self.is_of_user(path)}
        user = name.removeprefix("clients/")
        serials = [serial for serial, path in of_users.items() if _is_of_user(path, user)]
        if found := dict.fromkeys((*inventory.serials_of(user), *serials)):
            return {serial: of_users.get(serial) for serial in found}
        serial = read_serial(name)
        if serial is None or (serial not in here and serial < LEAST_UNKNOWN_SERIAL):
            advice = "give a name, a user id or a serial number that was issued, or the whole serial number of another"
            raise NotRevocable(name, "no such certificate was issued here", advice)
        if serial in here and serial not in of_users:
            raise NotRevocable(name, _NO_USER_S, _NOT_ON_LIST)
        return {serial: of_users.get(serial)}

    def _require_user_s(self, name: str) -> None:
        """See that a name, as for `certificate`, does not mean a certificate that is here and no user's."""
        try:
            path = self.certificate(name)
        except InvalidName:  # a serial number with colons, say
            return
        if path.parent.name != "clients" and path.exists():
            raise NotRevocable(name, _NO_USER_S, _NOT_ON_LIST)


def _is_signed(certificate: "x509.Certificate", authority: "x509.Certificate") -> bool:
    """Tell whether an authority has issued a certificate."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_of_user(certificate: Path, user_name: str) -> bool:
    """Tell whether a certificate is a user's, or was until it was renewed."""
    if certificate.parent.name != REPLACED:
        return certificate.stem == user_name
    return certificate.stem.rpartition("-")[0] == user_name
