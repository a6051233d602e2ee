"""Who a certificate says somebody is.

A user's certificate is an X.509-SVID: it carries exactly one URI (SPIFFE X.509-SVID §2), and the user's name as the
subject's common name. The URI has one of two forms, and each only one spelling:

    spiffe://<trust domain>/user/<uuid>
    spiffe://<trust domain>/user/<uuid>/from/<serial>.<serial>/only/<right>.<right>

The second is a narrowed certificate's, which counts for some rights only. It names the certificates from which it
descends, the first issued one first, by their serial numbers as OpenSSL writes them; its rights are sorted.
"""

import re
import ssl
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pki.errors import IdentityInvalid, InvalidNarrowing

EXPIRES_SOON = timedelta(days=14)
MOST_ANCESTORS = 8
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_MOST_BYTES = 2048  # SPIFFE-ID §2.3
_SERIAL = r"(?!00)(?:[0-9A-F]{2}){1,20}"  # RFC 5280 §4.1.2.2: positive, at most 20 bytes
_RIGHT = r"[a-z][a-z0-9-]*"
_IS_SERIAL = re.compile(_SERIAL)
_IS_RIGHT = re.compile(_RIGHT)
_NARROWED = re.compile(
    rf"(?P<user>[^/]*)/from/(?P<ancestors>{_SERIAL}(?:\.{_SERIAL})*)/only/(?P<rights>{_RIGHT}(?:\.{_RIGHT})*)"
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, as a verified certificate names it.

    Attributes:
        user_id: a UUID as text; it stays when the user is renamed.
        name: for people.
        serial: the certificate's serial number, hexadecimal.
        expires_at: when the certificate does.
        rights: what the certificate is good for; None if it is not narrowed, and good for whatever the user may do.
        ancestors: the serial numbers of the certificates from which a narrowed one descends, the oldest first.
        not_before: since when the certificate holds.
    """

    user_id: str
    name: str
    trust_domain: str
    serial: str
    expires_at: datetime
    rights: frozenset[str] | None = None
    ancestors: tuple[str, ...] = ()
    not_before: datetime = _LONG_AGO

    @property
    def spiffe_id(self) -> str:
        """The identity as a URI, just as it stands in the certificate."""
        if self.rights is None:
            return user_uri(self.trust_domain, self.user_id)
        return narrowed_uri(self.trust_domain, self.user_id, self.ancestors, self.rights)


@dataclass(frozen=True, slots=True)
class Named:
    """What the URI of a user's certificate says.

    Attributes:
        user_id: a UUID as text.
        rights: as in `Identity`.
        ancestors: as in `Identity`.
    """

    user_id: str
    rights: frozenset[str] | None = None
    ancestors: tuple[str, ...] = ()


def expires_soon(expires_at: datetime, now: datetime) -> bool:
    """Tell whether it is time to renew a certificate, which may have expired by then."""
    return expires_at - now < EXPIRES_SOON


def is_user_id(text: str) -> bool:
    """Tell whether a text is a user's id: a UUID in canonical form, or one user could be written as several."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def user_uri(trust_domain: str, user_id: str) -> str:
    """Build a user's SPIFFE id."""
    return f"spiffe://{trust_domain}/user/{user_id}"


def narrowed_uri(trust_domain: str, user_id: str, ancestors: Sequence[str], rights: Collection[str]) -> str:
    """Build the SPIFFE id of a narrowed certificate.

    Args:
        ancestors: the serial numbers of those from which it descends, the oldest first.
        rights: what it is good for.

    Raises:
        InvalidNarrowing: no certificate could say this.
    """
    if not 1 <= len(ancestors) <= MOST_ANCESTORS:
        raise InvalidNarrowing(f"it would be {len(ancestors)} steps away from a full one: give 1 to {MOST_ANCESTORS}")
    if wrong := [serial for serial in ancestors if _IS_SERIAL.fullmatch(serial) is None]:
        raise InvalidNarrowing(f"{wrong[0]!r} is no serial number")
    if len(set(ancestors)) < len(ancestors):
        raise InvalidNarrowing("it would descend from one certificate twice")
    if not rights:
        raise InvalidNarrowing("it would be good for nothing: give one right at least")
    if wrong := sorted(right for right in rights if _IS_RIGHT.fullmatch(right) is None):
        raise InvalidNarrowing(f"{wrong[0][:80]!r} is no right")
    tail = f"/from/{'.'.join(ancestors)}/only/{'.'.join(sorted(set(rights)))}"
    uri = user_uri(trust_domain, user_id) + tail
    if len(uri.encode()) > _MOST_BYTES:
        raise InvalidNarrowing(f"its rights do not fit into a URI of {_MOST_BYTES} bytes: give fewer")
    return uri


def read_identity(certificate: Mapping[str, Any], trust_domain: str) -> Identity:
    """Read a user off a certificate that TLS has verified.

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` gives it.
        trust_domain: the one that the user must be of.

    Raises:
        IdentityInvalid: it names no user, several, or one of another trust domain.
    """
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    named = read_uri(uris, trust_domain)
    names = list(_common_names(certificate))
    if len(names) != 1:
        raise IdentityInvalid(f"it carries {len(names)} common names instead of one")
    try:
        serial = certificate["serialNumber"]
        not_before, expires_at = (_read_time(certificate[name]) for name in ("notBefore", "notAfter"))
    except (KeyError, ValueError, OverflowError) as error:
        raise IdentityInvalid(f"it has no serial number, or does not say when it holds: {error}") from error
    return Identity(
        named.user_id, names[0], trust_domain, serial, expires_at, named.rights, named.ancestors, not_before
    )


def read_uri(uris: Sequence[str], trust_domain: str) -> Named:
    """Read off the URIs of a certificate whom it names, and how far it is narrowed.

    Raises:
        IdentityInvalid: they name no user, several, or one of another trust domain.
    """
    if len(uris) != 1:
        raise IdentityInvalid(f"it carries {len(uris)} URIs instead of one")
    (uri,) = uris
    prefix = user_uri(trust_domain, "")
    if uri.startswith(prefix):
        rest = uri.removeprefix(prefix)
        if is_user_id(rest):
            return Named(rest)
        if (narrowed := _NARROWED.fullmatch(rest)) is not None:
            return _read_narrowed(uri, trust_domain, narrowed)
    raise IdentityInvalid(f"{uri!r} is not of the form {prefix}<uuid>")


def read_any_uri(uri: str) -> Named | None:
    """Read off a URI whom it names, in whichever trust domain; None if it names no user."""
    try:
        return read_uri([uri], uri.removeprefix("spiffe://").partition("/")[0])
    except IdentityInvalid:
        return None


def _read_narrowed(uri: str, trust_domain: str, parts: re.Match[str]) -> Named:
    user_id, ancestors = parts["user"], tuple(parts["ancestors"].split("."))
    rights = frozenset(parts["rights"].split("."))
    try:
        canonical = narrowed_uri(trust_domain, user_id, ancestors, rights)
    except InvalidNarrowing as error:
        raise IdentityInvalid(str(error)) from error
    if uri != canonical or not is_user_id(user_id):
        raise IdentityInvalid(f"{uri!r} is not written as it would be issued")
    return Named(user_id, rights, ancestors)


def _read_time(text: str) -> datetime:
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def _common_names(certificate: Mapping[str, Any]) -> Iterator[str]:
    for relative_name in certificate.get("subject", ()):
        for kind, value in relative_name:
            if kind == "commonName":
                yield value
