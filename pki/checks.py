"""What people may ask for: names, hosts, ids and lifetimes that certificates and their files can have."""

import ipaddress
import re
import uuid
from collections.abc import Iterable
from datetime import timedelta

from pki.errors import InvalidHost, InvalidLifetime, InvalidUserId

LEAST_UNKNOWN_SERIAL = 1 << 60  # what authorities make at random is above; a name that is mistyped is not
_SERIAL = re.compile(r"[0-9A-Fa-f]{1,40}")  # RFC 5280 §4.1.2.2: at most 20 bytes
_MOST_DAYS = 3650
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")  # SPIFFE-ID §2.1
_NAME = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._@-]{0,63}")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")  # RFC 1123 §2.1, _ and *.


def is_name(text: str) -> bool:
    """Tell whether a text can be the name of a user, and of a file."""
    return _NAME.fullmatch(text) is not None


def is_trust_domain(text: str) -> bool:
    """Tell whether a text can be a trust domain."""
    return _TRUST_DOMAIN.fullmatch(text) is not None


def make_lifetime(days: int | None, usual: timedelta) -> timedelta:
    """Give the lifetime that somebody asks for.

    Raises:
        InvalidLifetime: no certificate could hold for so long.
    """
    if days is None:
        return usual
    if not 1 <= days <= _MOST_DAYS:
        raise InvalidLifetime(days, _MOST_DAYS)
    return timedelta(days=days)


def read_serial(text: str) -> int | None:
    """Read a serial number as people write it; None if it is none."""
    digits = text.replace(":", "")
    return int(digits, 16) if _SERIAL.fullmatch(digits) else None


def require_hosts(hosts: Iterable[str]) -> None:
    """See that certificates can hold hosts.

    Raises:
        InvalidHost: one of them is none.
    """
    for host in hosts:
        if not _is_host(host):
            raise InvalidHost(host)


def make_user_id(text: str | None) -> str:
    """Give the id that somebody asks for in canonical form; for None a new one.

    Raises:
        InvalidUserId: it is no UUID.
    """
    try:
        return str(uuid.uuid4() if text is None else uuid.UUID(text))
    except ValueError:
        raise InvalidUserId(str(text)) from None


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True
