"""The inventory of the client authority: what it issued and what it revoked, one JSON object a line.

    {"event":"issued","serial":"6F2A90","name":"alice","user_id":"123e4567-…","not_after":"2027-02-27T09:00:00Z"}
    {"event":"revoked","serials":["6F2A90"],"crl_number":3}

Lines are appended and never changed, so that a certificate can be revoked by its user when it is no longer in the
folder, and a list of revoked certificates that comes from a backup forgets nobody. A line is on the disk before the
certificate or the list that it is about. Narrowed certificates have no line: each names those that it descends from,
and is revoked with them.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509

from pki.errors import InventoryDamaged
from pki.files import read_bytes, sync_folder
from pki.identity import read_any_uri
from pki.inventory import common_name, names_in, serial_text

_MODE = 0o600


class Issued(msgspec.Struct, frozen=True, tag_field="event", tag="issued"):
    """A certificate was issued to a user.

    Attributes:
        serial: hexadecimal.
        name: the user's, as the common name.
        user_id: a UUID as text.
        not_after: when it expires.
    """

    serial: str
    name: str
    user_id: str
    not_after: datetime


class Revoked(msgspec.Struct, frozen=True, tag_field="event", tag="revoked"):
    """Certificates were revoked.

    Attributes:
        serials: theirs, hexadecimal.
        crl_number: the number of the list that they were put on (RFC 5280 §5.2.3).
    """

    serials: tuple[str, ...]
    crl_number: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the lines say together.

    Attributes:
        issued: certificates by serial number, in the order of their issue.
        revoked: the serial numbers of all that were revoked.
        crl_number: the highest of any list; 0 if there was none.
    """

    issued: Mapping[int, Issued] = field(default_factory=dict)
    revoked: frozenset[int] = frozenset()
    crl_number: int = 0

    def serials_of(self, user: str) -> list[int]:
        """Return the serial numbers of all certificates of a name, or of a user id."""
        return [serial for serial, issued in self.issued.items() if user in (issued.name, issued.user_id)]

    def user_ids_of(self, name: str) -> list[str]:
        """Return the ids of all users who had a certificate with this name, the latest last."""
        ids = [issued.user_id for issued in self.issued.values() if issued.name == name]
        return list(reversed(dict.fromkeys(reversed(ids))))

    def other_names_of(self, serials: Iterable[int], now: datetime) -> dict[str, str]:
        """Return under which other names the users of some certificates have certificates that count.

        Returns:
            User ids by name.
        """
        given = [self.issued[serial] for serial in serials if serial in self.issued]
        names, user_ids = {issued.name for issued in given}, {issued.user_id for issued in given}
        return {
            issued.name: issued.user_id
            for serial, issued in self.issued.items()
            if serial not in self.revoked
            and now < issued.not_after
            and issued.user_id in user_ids
            and issued.name not in names
        }


def issued_of(certificate: x509.Certificate) -> Issued | None:
    """Return the line for a certificate; None for one that names no user, or is narrowed."""
    uris, _ = names_in(certificate)
    named = read_any_uri(uris[0]) if len(uris) == 1 else None
    if named is None or named.rights is not None:
        return None
    serial = serial_text(certificate.serial_number)
    return Issued(serial, common_name(certificate), named.user_id, certificate.not_valid_after_utc)


def read_inventory(path: Path) -> Inventory:
    """Read an inventory; one that is not there is empty.

    Raises:
        Missing: it cannot be read.
        InventoryDamaged: one of its lines is none.
    """
    if not os.path.lexists(path):
        return Inventory()
    data = read_bytes(path, "put back the one that was there")
    *lines, _ = data.split(b"\n")  # the last has no end: empty, or never finished
    decoder = msgspec.json.Decoder(Issued | Revoked)
    issued: dict[int, Issued] = {}
    revoked: set[int] = set()
    crl_number = 0
    for number, line in enumerate(lines, 1):
        try:
            match decoder.decode(line):
                case Issued() as event:
                    issued[int(event.serial, 16)] = event
                case Revoked() as event:
                    revoked.update(int(serial, 16) for serial in event.serials)
                    crl_number = max(crl_number, event.crl_number)
        except ValueError as error:  # of msgspec, too
            raise InventoryDamaged(path, number, str(error)) from error
    return Inventory(issued, frozenset(revoked), crl_number)


def append_events(path: Path, events: Iterable[Issued | Revoked]) -> None:
    """Append lines to an inventory, which is made if there is none, and wait until they are on the disk.

    One process at a time may do this.
    """
    lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    if not lines:
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, _MODE), "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)  # a line without its end: nothing was issued for it
        file.seek(0, os.SEEK_END)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
