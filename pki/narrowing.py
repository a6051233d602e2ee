"""Certificates with fewer rights and less time than the one that they are issued for. Pure: no file is touched here.

The key is made by whoever is going to use it, and never leaves them. What they send is a certificate request (PKCS #10,
RFC 2986), of which the key counts and the signature, which shows that they have it; who they are, and what they may
have at most, stands in the certificate that they have already.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from pki.authority import CLOCK_SKEW, Credential, PrivateKey, PublicKey, Validity, digest_for, sign_client
from pki.errors import CertificateExpired, InvalidNarrowing, InvalidRequest, IssuedInvalid
from pki.identity import Identity, narrowed_uri

LIFETIME = timedelta(minutes=15)
_SHORTEST = timedelta(seconds=1)  # RFC 5280 §4.1.2.5: times are whole seconds
_MOST_REQUEST_BYTES = 8192
# What cryptography raises for bytes that it does not take; `x509.InvalidVersion` is no ValueError.
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


def make_key(kind: str) -> PrivateKey:
    """Make a private key.

    Args:
        kind: `p256` or `ed25519`.
    """
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            raise ValueError(f"there are no keys of the kind {kind!r} here")


def make_request(key: PrivateKey) -> bytes:
    """Ask for a certificate of a key, in DER. The request says nothing else."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest_for(key)).public_bytes(Encoding.DER)


def to_der(request: bytes) -> bytes:
    """Give a certificate request that may be in PEM in DER.

    Raises:
        InvalidRequest: it looks like PEM and is none that can be read.
    """
    if not request.lstrip().startswith(b"-----BEGIN"):
        return request
    try:
        return x509.load_pem_x509_csr(request).public_bytes(Encoding.DER)
    except _UNREADABLE as error:
        raise InvalidRequest("it is no PKCS #10 in PEM that can be read") from error


def fit(key: PrivateKey, data: bytes) -> Credential:
    """Put the certificate that was issued for a key, in DER, together with it.

    Raises:
        IssuedInvalid: it is none, or another key's.
    """
    try:
        certificate = x509.load_der_x509_certificate(data)
        fits = certificate.public_key() == key.public_key()
    except _UNREADABLE as error:
        raise IssuedInvalid("it is no certificate that can be read") from error
    if not fits:
        raise IssuedInvalid("it is for another key")
    return Credential(key, certificate)


def read_request(data: bytes) -> PublicKey:
    """Read the key off a certificate request whose sender has shown that they have its private half.

    Args:
        data: the request in DER.

    Raises:
        InvalidRequest: it is none, its key is of another kind, or its signature is not the key's.
    """
    if len(data) > _MOST_REQUEST_BYTES:
        raise InvalidRequest(f"it has more than {_MOST_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(data)
        key = request.public_key()
        is_ours = isinstance(key, ed25519.Ed25519PublicKey) or (
            isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        )
        # Only now: what the signatures of other keys cost to be checked is for their maker to choose.
        is_signed = is_ours and request.is_signature_valid
    except _UNREADABLE as error:
        raise InvalidRequest("it is no PKCS #10 in DER that can be read") from error
    if not isinstance(key, PublicKey) or not is_ours:
        raise InvalidRequest("its key is neither of P-256 nor of Ed25519")
    if not is_signed:
        raise InvalidRequest("it is not signed with its own key")
    return key


def issue_narrowed(
    authority: Credential,
    holder: Identity,
    key: PublicKey,
    rights: Collection[str],
    lifetime: timedelta,
    now: datetime,
) -> x509.Certificate:
    """Issue a certificate that can do nothing, at no time, that another cannot.

    Args:
        authority: who signs.
        holder: what the other says.
        key: whose certificate it is.
        rights: what it is to be good for; a part of what the other is.
        lifetime: for how long, counted from now; it ends with the other at the latest.
        now: the time.

    Raises:
        InvalidNarrowing: the other does not have these rights, or no certificate could say this.
        CertificateExpired: the other holds no more.
    """
    if holder.rights is not None and (further := sorted(set(rights) - holder.rights)):
        raise InvalidNarrowing(f"the certificate that it descends from is not good for {further[0]!r}")
    if lifetime < _SHORTEST:
        raise InvalidNarrowing("it would hold for less than a second")
    if holder.expires_at <= now:
        raise CertificateExpired
    not_after = holder.expires_at if lifetime >= holder.expires_at - now else (now + lifetime).replace(microsecond=0)
    validity = Validity(max(holder.not_before, now - CLOCK_SKEW), not_after)
    uri = narrowed_uri(holder.trust_domain, holder.user_id, (*holder.ancestors, holder.serial), rights)
    return sign_client(authority, key, holder.name, uri, validity)
