"""Making authorities and the certificates that they sign. Pure: no file is touched here."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki.errors import TrustDomainMissing
from pki.identity import user_uri

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=365)
CLIENT_LIFETIME = timedelta(days=90)
CLOCK_SKEW = timedelta(minutes=5)

# Users may have keys of either kind; what is made here for others has P-256.
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key and the certificate of its public half, chain excluded."""

    key: PrivateKey
    certificate: x509.Certificate

    def key_pem(self) -> bytes:
        """Encode the private key as unencrypted PKCS #8 in PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def certificate_pem(self) -> bytes:
        """Encode the certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate holds."""

    not_before: datetime
    not_after: datetime

    @classmethod
    def from_now(cls, lifetime: timedelta) -> Self:
        """Begin now, or a little before for those whose clock is slow."""
        now = datetime.now(UTC)
        return cls(now - CLOCK_SKEW, now + lifetime)


def make_authority(common_name: str, trust_domain: str) -> Credential:
    """Make a self-signed authority that signs certificates of one trust domain, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    builder = (
        _builder(key.public_key(), name, name, Validity.from_now(AUTHORITY_LIFETIME))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        # SPIFFE X.509-SVID §3.1: a signing certificate names its trust domain, without a path.
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
    )
    return Credential(key, builder.sign(key, digest_for(key)))


def trust_domain_of(authority: x509.Certificate) -> str:
    """Read the trust domain off an authority's certificate.

    Raises:
        TrustDomainMissing: it names none, or several.
    """
    try:
        names = authority.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError) as error:
        raise TrustDomainMissing from error
    scheme, _, name = uri.partition("://")
    if scheme != "spiffe" or not name or "/" in name:
        raise TrustDomainMissing
    return name


def issue_server(authority: Credential, hosts: Iterable[str], lifetime: timedelta = SERVER_LIFETIME) -> Credential:
    """Issue a certificate for a server.

    Args:
        authority: who signs.
        hosts: the names and IP addresses under which clients reach it; the first is the common name.
    """
    hosts = list(hosts)
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH
    return Credential(key, _sign(authority, key.public_key(), hosts[0], names, usage, Validity.from_now(lifetime)))


def issue_client(
    authority: Credential, user_name: str, user_id: str, lifetime: timedelta = CLIENT_LIFETIME
) -> Credential:
    """Issue a certificate for a user.

    Args:
        authority: who signs.
        user_name: for people; becomes the common name.
        user_id: a UUID as text; becomes the SPIFFE id.
    """
    uri = user_uri(trust_domain_of(authority.certificate), user_id)
    key = ec.generate_private_key(ec.SECP256R1())
    return Credential(key, sign_client(authority, key.public_key(), user_name, uri, Validity.from_now(lifetime)))


def sign_client(
    authority: Credential, key: PublicKey, user_name: str, uri: str, validity: Validity
) -> x509.Certificate:
    """Sign the certificate of a key that is a user's.

    Args:
        authority: who signs.
        user_name: for people; becomes the common name.
        uri: the SPIFFE id.
    """
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return _sign(authority, key, user_name, names, ExtendedKeyUsageOID.CLIENT_AUTH, validity)


def digest_for(key: PrivateKey) -> hashes.SHA256 | None:
    """Tell what a key's signatures are made over: Ed25519 has its own digest (RFC 8032 §5.1)."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _sign(
    authority: Credential,
    key: PublicKey,
    common_name: str,
    names: x509.SubjectAlternativeName,
    usage: x509.ObjectIdentifier,
    validity: Validity,
) -> x509.Certificate:
    builder = (
        _builder(key, _name(common_name), authority.certificate.subject, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    return builder.sign(authority.key, digest_for(authority.key))


def _builder(key: PublicKey, subject: x509.Name, issuer: x509.Name, validity: Validity) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])  # ub-common-name, RFC 5280 A.1


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
