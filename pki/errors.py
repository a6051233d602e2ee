"""What goes wrong with certificates.

PkiError
├── AlreadyExists
├── AuthorityMissing
├── AuthorityDiffers
├── ListNotCopied
├── Missing
├── InventoryDamaged
├── ListOutdated
├── NotTrusted
├── InputInvalid
│   ├── InvalidName
│   ├── InvalidAuthority
│   ├── NameIssued
│   ├── InvalidUserId
│   ├── InvalidHost
│   ├── InvalidTrustDomain
│   ├── InvalidLifetime
│   ├── InvalidNarrowing
│   └── InvalidRequest
├── IssuedInvalid
├── NotRenewable
├── NotRevocable
├── TrustDomainMissing
├── IdentityInvalid
└── CertificateRefused
    ├── CertificateRevoked
    └── CertificateExpired
"""

import shlex
from collections.abc import Sequence
from pathlib import Path


class PkiError(Exception):
    """Anything that this package raises on purpose."""


class AlreadyExists(PkiError):
    """A key or certificate is there already, and none is ever overwritten."""

    def __init__(self, path: Path, advice: str) -> None:
        self.path = path
        super().__init__(f"{path} exists already and is not overwritten: {advice}")


class Missing(PkiError):
    """A key or certificate that is needed is not there, or cannot be read."""

    def __init__(self, path: Path, problem: str, advice: str) -> None:
        self.path = path
        super().__init__(f"cannot read {path}: {problem}: {advice}")


class AuthorityMissing(PkiError):
    """There are no authorities in the folder that should have their keys."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"there are no authorities in {folder}: attach what the folder is on, or give another with --authority;"
            " `workerctl pki init --authority DIR` makes new ones"
        )


class AuthorityDiffers(PkiError):
    """A folder has other authorities than those whose certificates a daemon's folder has."""

    def __init__(self, own: Path, theirs: Path) -> None:
        super().__init__(
            f"{theirs} is not the authority of {own}: give the folder of its own with --authority, or another --pki-dir"
        )


class ListNotCopied(PkiError):
    """The list of revoked certificates could not be copied to a daemon's folder."""

    def __init__(self, crl: Path, copy: Path, problem: str) -> None:
        command = shlex.join(["install", "-m", "644", str(crl), str(copy)])
        super().__init__(
            f"the daemon does not know yet who was revoked, because {copy} cannot be written: {problem}: copy the list"
            f" with `{command}`"
        )


class InventoryDamaged(PkiError):
    """The inventory of what was issued has a line that cannot be read."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(
            f"cannot read line {line} of {path}: {problem}: put back what stood there; without it, its certificate"
            " cannot be revoked by name"
        )


class ListOutdated(PkiError):
    """A list of revoked certificates is older than one that was in use, and would pardon who was revoked since.

    Args:
        path: the list.
        problem: what shows it.
        memory: the file that the newer one is remembered in.
    """

    def __init__(self, path: Path, problem: str, memory: Path) -> None:
        super().__init__(
            f"{path} is refused: {problem}: put back the newest list, or make one with `workerctl pki revoke` where"
            f" the authority is; to pardon whoever was revoked since, remove {memory} and restart"
        )


class NotTrusted(PkiError):
    """A key or certificate, or a folder on the way to it, can be changed by other accounts, or a key can be read."""


class InputInvalid(PkiError):
    """What somebody asks for is something that no certificate could hold."""


class InvalidName(InputInvalid):
    """A name that cannot be that of a file."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name!r} cannot be the name of a user or a daemon: use letters, digits, '.', '_', '-' and '@',"
            " at most 64 of them"
        )


class InvalidAuthority(InputInvalid):
    """A folder for the authorities within the daemon's."""

    def __init__(self, authority: Path, folder: Path) -> None:
        super().__init__(f"{authority} is within {folder}, which the daemon reads: choose a folder outside of it")


class NameIssued(InputInvalid):
    """A name that was issued before, without a decision whose it is now."""

    def __init__(self, name: str, user_ids: Sequence[str]) -> None:
        known = f"user {user_ids[0]}" if len(user_ids) == 1 else f"users {', '.join(user_ids)}"
        super().__init__(
            f"{name!r} was issued before, to {known}: give --user-id {user_ids[-1]} for the same user, or --new-user"
            " for another, who gets the roles that are given by this name"
        )


class InvalidUserId(InputInvalid):
    """A user id that is not a UUID."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} cannot be a user id: it must be a UUID, as `workerctl whoami` shows it")


class InvalidHost(InputInvalid):
    """A host that no certificate could name."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"{host!r} cannot be a host: give a name in ASCII (xn--… for others) or an address, without scheme and port"
        )


class InvalidTrustDomain(InputInvalid):
    """A trust domain that no SPIFFE id could have."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} cannot be a trust domain: use lower-case letters, digits, '.', '-' and '_'")


class InvalidLifetime(InputInvalid):
    """A lifetime that no certificate could have."""

    def __init__(self, days: int, most_days: int) -> None:
        super().__init__(f"a certificate cannot hold for {days} days: give 1 to {most_days}")


class InvalidNarrowing(InputInvalid):
    """A certificate with fewer rights that could not be written, or not be told from others."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"a certificate cannot be narrowed so: {problem}")


class InvalidRequest(InputInvalid):
    """A certificate request that no certificate is issued for."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"the certificate request cannot be used: {problem}")


class IssuedInvalid(PkiError):
    """What came back for a certificate request is not what was asked for."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"what was issued cannot be used: {problem}")


class NotRenewable(PkiError):
    """A certificate that cannot be issued once more as it is."""

    def __init__(self, path: Path, problem: str, advice: str) -> None:
        self.path = path
        super().__init__(f"cannot renew {path}: {problem}: {advice}")


class NotRevocable(PkiError):
    """What cannot be put on the list of revoked certificates."""

    def __init__(self, name: str, problem: str, advice: str) -> None:
        super().__init__(f"cannot revoke {name!r}: {problem}: {advice}")


class TrustDomainMissing(PkiError):
    """An authority's certificate does not say which trust domain it signs for."""

    def __init__(self, path: Path | None = None) -> None:
        name = "the authority" if path is None else f"the authority {path}"
        super().__init__(f"{name} names no trust domain: it needs one URI spiffe://NAME as its SAN")


class IdentityInvalid(PkiError):
    """A certificate does not name a user in the expected way."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the client certificate names no user of this daemon: {problem}")


class CertificateRefused(PkiError):
    """A certificate of the right authority does not count any more. The text is for whoever presents it."""


class CertificateRevoked(CertificateRefused):
    """It was revoked."""

    def __init__(self) -> None:
        super().__init__("the client certificate was revoked: ask whoever runs the daemon for another")


class CertificateExpired(CertificateRefused):
    """Its time has run out."""

    def __init__(self) -> None:
        super().__init__(
            "the client certificate has expired: have it renewed with `workerctl pki renew`,"
            " or a narrowed one issued anew with `workerctl credential issue`"
        )
