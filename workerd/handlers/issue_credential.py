"""IssueCredential: give the caller a further certificate, with fewer rights and for a shorter time."""

from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from worker_api.worker.v1 import IssueCredentialRequest, IssueCredentialResponse, WorkerServiceBase

from pki.errors import Missing, NotTrusted
from pki.files import load_pair
from pki.identity import Identity
from pki.store import PkiFolder
from workerd.access.caller import Caller
from workerd.access.policy import DAEMON
from workerd.engine.errors import InvalidArgument, quote
from workerd.errors import ActingForAnother, CannotIssue
from workerd.handler import MOST_RIGHTS, Call, handles

log = structlog.get_logger()
_SHORTEST = timedelta(seconds=1)  # certificates count seconds (RFC 5280 §4.1.2.5)


def _describe(request: IssueCredentialRequest) -> dict[str, Any]:
    lifetime = None if request.lifetime is None else request.lifetime.total_seconds()
    return {"rights": sorted(request.rights), "lifetime_seconds": lifetime}


@handles(
    WorkerServiceBase,
    "IssueCredential",
    right="issue-credential",
    audit=_describe,
    longest={"rights": MOST_RIGHTS},
)
async def issue_credential(call: Call, request: IssueCredentialRequest) -> IssueCredentialResponse:
    """Issue a certificate that can do a part of what the caller's can, and does not outlive it."""
    if call.caller.actor is not None:
        raise ActingForAnother
    holder, rights = call.identity, frozenset(request.rights)
    _require(rights, call.caller)
    if request.lifetime is not None and request.lifetime < _SHORTEST:
        raise InvalidArgument("lifetime", "is shorter than a second")
    # In a thread: the key comes off the disk, and whatever makes certificates is slow to import.
    issued, serial, expires_at = await call.daemon.signing.run(_issue, call.daemon.pki, holder, request, rights)
    call.caller.note("credential-issued", issued=serial, rights=sorted(rights), expires_at=expires_at.isoformat())
    return IssueCredentialResponse(certificate=issued, expires_at=expires_at)


def _require(rights: frozenset[str], caller: Caller) -> None:
    """See that the caller's certificate is good for rights, whatever the policies say of them."""
    if not rights:
        raise InvalidArgument("rights", "names none: a certificate must be good for something")
    known = caller.rights.known
    if unknown := sorted(rights.difference(known)):
        raise InvalidArgument("rights", f"names {quote(unknown[0])}, but there are only {', '.join(sorted(known))}")
    for right in sorted(rights):
        caller.require_in_certificate(right, DAEMON)


def _issue(
    folder: PkiFolder, holder: Identity, request: IssueCredentialRequest, rights: frozenset[str]
) -> tuple[bytes, str, datetime]:
    """Sign, with the authority's key, which is read for it and not kept.

    Returns:
        The certificate in DER, its serial number, and when it expires.

    Raises:
        CannotIssue: the key is not there, or cannot be used.
        InvalidRequest, InvalidNarrowing, CertificateExpired: it cannot be had.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from pki.inventory import serial_text
    from pki.narrowing import LIFETIME, issue_narrowed, read_request

    key = read_request(request.certificate_request)
    lifetime = LIFETIME if request.lifetime is None else request.lifetime
    try:
        authority = load_pair(folder.client_ca)
    except (Missing, NotTrusted) as error:
        log.warning("no certificate can be issued", error=str(error))
        raise CannotIssue from error
    certificate = issue_narrowed(authority, holder, key, rights, lifetime, datetime.now(UTC))
    serial = serial_text(certificate.serial_number)
    return certificate.public_bytes(Encoding.DER), serial, certificate.not_valid_after_utc
