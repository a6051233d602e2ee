"""Making authorities and the certificates that they sign. Pure: no file is touched here."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki.errors import TrustDomainMissing
from pki.identity import user_uri

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_LIFETIME = timedelta(days=365)
CLIENT_LIFETIME = timedelta(days=90)
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key and the certificate of its public half, chain excluded."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def key_pem(self) -> bytes:
        """Encode the private key as unencrypted PKCS #8 in PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def certificate_pem(self) -> bytes:
        """Encode the certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def make_authority(common_name: str, trust_domain: str) -> Credential:
    """Make a self-signed authority that signs certificates of one trust domain, and no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    builder = (
        _builder(key, name, name, AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        # SPIFFE X.509-SVID §3.1: a signing certificate names its trust domain, without a path.
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
    )
    return Credential(key, builder.sign(key, hashes.SHA256()))


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
    return _issue(authority, hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, lifetime)


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
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return _issue(authority, user_name, names, ExtendedKeyUsageOID.CLIENT_AUTH, lifetime)


def _issue(
    authority: Credential,
    common_name: str,
    names: x509.SubjectAlternativeName,
    usage: x509.ObjectIdentifier,
    lifetime: timedelta,
) -> Credential:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(key, _name(common_name), authority.certificate.subject, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    return Credential(key, builder.sign(authority.key, hashes.SHA256()))


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
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
