"""Who a certificate says somebody is.

A user's certificate is an X.509-SVID: it carries exactly one URI, `spiffe://<trust domain>/user/<uuid>`
(SPIFFE X.509-SVID §2), and the user's name as the subject's common name.
"""

import ssl
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pki.errors import IdentityInvalid

EXPIRES_SOON = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user, as a verified certificate names it.

    Attributes:
        user_id: a UUID as text; it stays when the user is renamed.
        name: for people.
        serial: the certificate's serial number, hexadecimal.
        expires_at: when the certificate does.
    """

    user_id: str
    name: str
    trust_domain: str
    serial: str
    expires_at: datetime

    @property
    def spiffe_id(self) -> str:
        """The identity as a URI."""
        return user_uri(self.trust_domain, self.user_id)


def expires_soon(expires_at: datetime, now: datetime) -> bool:
    """Tell whether it is time to renew a certificate, which may have expired by then."""
    return expires_at - now < EXPIRES_SOON


def user_uri(trust_domain: str, user_id: str) -> str:
    """Build a user's SPIFFE id."""
    return f"spiffe://{trust_domain}/user/{user_id}"


def read_identity(certificate: Mapping[str, Any], trust_domain: str) -> Identity:
    """Read a user off a certificate that TLS has verified.

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` gives it.
        trust_domain: the one that the user must be of.

    Raises:
        IdentityInvalid: it names no user, several, or one of another trust domain.
    """
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    user_id = read_user_id(uris, trust_domain)
    names = list(_common_names(certificate))
    if len(names) != 1:
        raise IdentityInvalid(f"it carries {len(names)} common names instead of one")
    try:
        serial = certificate["serialNumber"]
        expires_at = datetime.fromtimestamp(ssl.cert_time_to_seconds(certificate["notAfter"]), UTC)
    except (KeyError, ValueError, OverflowError) as error:
        raise IdentityInvalid(f"it has no serial number, or no date of expiry: {error}") from error
    return Identity(user_id, names[0], trust_domain, serial, expires_at)


def read_user_id(uris: Sequence[str], trust_domain: str) -> str:
    """Read a user's id off the URIs of a certificate.

    Raises:
        IdentityInvalid: they name no user, several, or one of another trust domain.
    """
    if len(uris) != 1:
        raise IdentityInvalid(f"it carries {len(uris)} URIs instead of one")
    prefix = user_uri(trust_domain, "")
    user_id = uris[0].removeprefix(prefix)
    if not uris[0].startswith(prefix) or not _is_canonical_uuid(user_id):
        raise IdentityInvalid(f"{uris[0]!r} is not of the form {prefix}<uuid>")
    return user_id


def _common_names(certificate: Mapping[str, Any]) -> Iterator[str]:
    for relative_name in certificate.get("subject", ()):
        for kind, value in relative_name:
            if kind == "commonName":
                yield value


def _is_canonical_uuid(text: str) -> bool:
    """Tell whether a text is a UUID in canonical form: a user has one way to be written, or would be several."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
