"""What certificates say, for people and programs that look after them. Pure: no file is touched here."""

import enum
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki.identity import Named, expires_soon, read_any_uri


class Purpose(enum.StrEnum):
    """What a certificate is good for."""

    AUTHORITY = "authority"
    SERVER = "server"
    CLIENT = "client"
    NOTHING = "nothing"


class State(enum.StrEnum):
    """Whether a certificate can be used."""

    VALID = "valid"
    EXPIRES_SOON = "expires soon"
    EXPIRED = "expired"
    REVOKED = "revoked"
    NOT_YET_VALID = "not yet valid"


@dataclass(frozen=True, slots=True)
class Description:
    """A certificate in words.

    Attributes:
        subject: the common name; empty if there is none.
        spiffe_id: the URI in the certificate; empty if there is none.
        hosts: the names and addresses that a server is known under.
        serial: the serial number, hexadecimal.
        rights: what a narrowed certificate is good for, sorted; empty for one that is not narrowed.
        ancestors: the serial numbers of those from which a narrowed certificate descends, the oldest first.
    """

    subject: str
    purpose: Purpose
    spiffe_id: str
    hosts: tuple[str, ...]
    serial: str
    not_before: datetime
    not_after: datetime
    state: State
    rights: tuple[str, ...]
    ancestors: tuple[str, ...]


def describe(certificate: x509.Certificate, now: datetime, revoked: Collection[int] = frozenset()) -> Description:
    """Describe a certificate as it is at some time.

    Args:
        certificate: which.
        now: that time.
        revoked: the serial numbers of clients' certificates that were revoked.
    """
    uris, hosts = names_in(certificate)
    purpose = _purpose(certificate)
    named = (read_any_uri(uris[0]) if len(uris) == 1 else None) or Named("")
    serials = (certificate.serial_number, *(int(serial, 16) for serial in named.ancestors))
    is_revoked = purpose is Purpose.CLIENT and any(serial in revoked for serial in serials)
    return Description(
        subject=common_name(certificate),
        purpose=purpose,
        spiffe_id=", ".join(uris),
        hosts=hosts,
        serial=serial_text(certificate.serial_number),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        state=State.REVOKED if is_revoked else _state(certificate, now, is_short=named.rights is not None),
        rights=tuple(sorted(named.rights or ())),
        ancestors=named.ancestors,
    )


def describe_now(certificate: x509.Certificate, revoked: Collection[int] = frozenset()) -> Description:
    """Describe a certificate as it is now."""
    return describe(certificate, datetime.now(UTC), revoked)


def common_name(certificate: x509.Certificate) -> str:
    """Read the common name off a certificate; it is empty if there is none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def serial_text(serial: int) -> str:
    """Write a serial number as OpenSSL does: whole bytes, hexadecimal, upper case."""
    return serial.to_bytes((serial.bit_length() + 7) // 8 or 1).hex().upper()


def names_in(certificate: x509.Certificate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read the URIs off a certificate, and the names and addresses of hosts."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (), ()
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return tuple(uris), (*names.get_values_for_type(x509.DNSName), *addresses)


def _purpose(certificate: x509.Certificate) -> Purpose:
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return Purpose.AUTHORITY
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return Purpose.NOTHING
    if ExtendedKeyUsageOID.SERVER_AUTH in usages:
        return Purpose.SERVER
    return Purpose.CLIENT if ExtendedKeyUsageOID.CLIENT_AUTH in usages else Purpose.NOTHING


def _state(certificate: x509.Certificate, now: datetime, *, is_short: bool) -> State:
    if now > certificate.not_valid_after_utc:
        return State.EXPIRED
    if now < certificate.not_valid_before_utc:
        return State.NOT_YET_VALID
    # A narrowed certificate is short-lived on purpose.
    soon = not is_short and expires_soon(certificate.not_valid_after_utc, now)
    return State.EXPIRES_SOON if soon else State.VALID
