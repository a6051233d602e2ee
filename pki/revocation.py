"""Lists of certificates that count no more before they expire (CRL, RFC 5280 §5). Pure: no file is touched here."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pki.authority import Credential, digest_for


@dataclass(frozen=True, slots=True)
class CrlVersion:
    """Which list of an authority one is.

    Attributes:
        authority: a digest of the authority's public key, hexadecimal.
        number: the list's (RFC 5280 §5.2.3); 0 if it has none.
        digest: of the whole list, hexadecimal.
    """

    authority: str
    number: int
    digest: str


def version_of(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> CrlVersion:
    """Return which list of an authority one is."""
    return CrlVersion(key_digest(authority), number_of(crl), crl.fingerprint(hashes.SHA256()).hex())


def key_digest(authority: x509.Certificate) -> str:
    """Return a digest of an authority's public key, hexadecimal."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def add_revoked(
    authority: Credential,
    old: x509.CertificateRevocationList | None,
    serials: Iterable[int],
    now: datetime,
    number: int,
) -> x509.CertificateRevocationList:
    """Make the list that follows another, with further certificates on it.

    It holds for as long as its authority: daemons have it as a file, and a list that ran out would lock everybody out.

    Args:
        authority: whose certificates they are.
        old: the list so far; None for the first.
        serials: the serial numbers of those that are revoked now.
        now: the time of that.
        number: that of the new list.
    """
    revoked = {entry.serial_number: entry for entry in old or ()}
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        revoked.setdefault(serial, entry)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now)
        .next_update(authority.certificate.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    for entry in revoked.values():
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, digest_for(authority.key))


def is_of(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    """Tell whether an authority has signed a list."""
    key = authority.public_key()
    # What is_signature_valid takes is what an authority can have; others raise TypeError.
    return crl.issuer == authority.subject and crl.is_signature_valid(key)  # type: ignore[arg-type]


def serials_on(crl: x509.CertificateRevocationList) -> frozenset[int]:
    """Give the serial numbers of the certificates on a list."""
    return frozenset(entry.serial_number for entry in crl)


def number_of(crl: x509.CertificateRevocationList | None) -> int:
    """Return the number of a list (RFC 5280 §5.2.3); 0 if it has none, or there is no list."""
    if crl is None:
        return 0
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0
