"""What stands in the certificates that are made here, read by the library that others read them with."""

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from pki.authority import (
    AUTHORITY_LIFETIME,
    CLIENT_LIFETIME,
    SERVER_LIFETIME,
    Credential,
    issue_client,
    issue_server,
    make_authority,
    trust_domain_of,
)
from pki.identity import user_uri

DOMAIN = "example.internal"
USER_ID = "123e4567-e89b-42d3-a456-426614174000"
HOSTS = ["localhost", "build1.example.org", "127.0.0.1", "::1"]
SKEW = timedelta(minutes=5)
SECOND = timedelta(seconds=1)
USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign"),
)
Make = Callable[[Credential], Credential]


def a_server(authority: Credential) -> Credential:
    """A server's certificate."""
    return issue_server(authority, iter(HOSTS))


def a_client(authority: Credential) -> Credential:
    """A user's certificate."""
    return issue_client(authority, "alice", USER_ID)


def itself(authority: Credential) -> Credential:
    """The authority's own certificate."""
    return authority


@pytest.fixture(scope="module")
def authority() -> Credential:
    """An authority."""
    return make_authority("the authority", DOMAIN)


def critical(certificate: x509.Certificate) -> set[type[x509.ExtensionType]]:
    """Tell which kinds of extension a verifier must understand."""
    return {type(extension.value) for extension in certificate.extensions if extension.critical}


def usages(certificate: x509.Certificate) -> set[str]:
    """Tell what a certificate's key may be used for."""
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    return {name for name in USAGES if getattr(usage, name)}


def names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    """Read the alternative names."""
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def common_name(name: x509.Name) -> list[str | bytes]:
    """Read a name that is a common name and nothing else."""
    assert [attribute.oid for attribute in name] == [NameOID.COMMON_NAME]
    return [attribute.value for attribute in name]


def test_authority_signs_certificates_and_no_further_authorities(authority: Credential) -> None:
    certificate = authority.certificate
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    assert usages(certificate) == {"key_cert_sign", "crl_sign"}
    assert critical(certificate) == {x509.BasicConstraints, x509.KeyUsage}
    assert list(names(certificate)) == [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}")]
    assert common_name(certificate.subject) == ["the authority"]
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize(
    ("make", "usage"), [(a_server, ExtendedKeyUsageOID.SERVER_AUTH), (a_client, ExtendedKeyUsageOID.CLIENT_AUTH)]
)
def test_certificate_is_for_one_side_of_tls_and_signs_no_other(
    authority: Credential, make: Make, usage: x509.ObjectIdentifier
) -> None:
    certificate = make(authority).certificate
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (False, None)
    assert usages(certificate) == {"digital_signature"}
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    assert critical(certificate) == {x509.BasicConstraints, x509.KeyUsage}


def test_server_s_names_are_the_hosts(authority: Credential) -> None:
    certificate = a_server(authority).certificate
    assert list(names(certificate)) == [
        x509.DNSName("localhost"),
        x509.DNSName("build1.example.org"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    assert common_name(certificate.subject) == ["localhost"]


def test_user_s_only_name_is_the_spiffe_id(authority: Credential) -> None:
    certificate = a_client(authority).certificate
    assert list(names(certificate)) == [x509.UniformResourceIdentifier(user_uri(DOMAIN, USER_ID))]
    assert user_uri(DOMAIN, USER_ID) == f"spiffe://{DOMAIN}/user/{USER_ID}"
    assert common_name(certificate.subject) == ["alice"]


@pytest.mark.parametrize("make", [a_server, a_client])
def test_certificate_names_its_authority_by_name_and_by_key(authority: Credential, make: Make) -> None:
    certificate = make(authority).certificate
    certificate.verify_directly_issued_by(authority.certificate)
    issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert issuer.key_identifier == own.digest


@pytest.mark.parametrize("make", [a_server, a_client])
def test_authority_of_the_same_name_with_another_key_has_not_signed_it(authority: Credential, make: Make) -> None:
    with pytest.raises(InvalidSignature):
        make(authority).certificate.verify_directly_issued_by(make_authority("the authority", DOMAIN).certificate)


@pytest.mark.parametrize("make", [itself, a_server, a_client])
def test_key_is_p_256_and_belongs_to_the_certificate(authority: Credential, make: Make) -> None:
    credential = make(authority)
    assert isinstance(credential.key, ec.EllipticCurvePrivateKey)
    assert isinstance(credential.key.curve, ec.SECP256R1)
    assert credential.certificate.public_key() == credential.key.public_key()
    assert isinstance(credential.certificate.signature_hash_algorithm, hashes.SHA256)
    own = credential.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert own == x509.SubjectKeyIdentifier.from_public_key(credential.key.public_key())


@pytest.mark.parametrize(
    ("make", "lifetime"),
    [(itself, AUTHORITY_LIFETIME), (a_server, SERVER_LIFETIME), (a_client, CLIENT_LIFETIME)],
)
def test_certificate_is_good_for_its_lifetime_and_for_clocks_that_are_slow(make: Make, lifetime: timedelta) -> None:
    before = datetime.now(UTC) - SECOND  # a certificate counts whole seconds
    certificate = make(make_authority("the authority", DOMAIN)).certificate
    after = datetime.now(UTC)
    assert before - SKEW <= certificate.not_valid_before_utc <= after - SKEW
    assert before + lifetime <= certificate.not_valid_after_utc <= after + lifetime


@pytest.mark.parametrize("lifetime", [timedelta(hours=1), -SECOND])
def test_lifetime_can_be_chosen(authority: Credential, lifetime: timedelta) -> None:
    wanted = datetime.now(UTC) + lifetime
    for credential in (
        issue_server(authority, HOSTS, lifetime),
        issue_client(authority, "alice", USER_ID, lifetime),
    ):
        assert abs(credential.certificate.not_valid_after_utc - wanted) < 30 * SECOND


def test_no_two_certificates_have_a_serial_number_or_a_key_in_common(authority: Credential) -> None:
    certificates = [make(authority).certificate for make in (itself, a_server, a_client, a_client)]
    assert len({certificate.serial_number for certificate in certificates}) == 4
    assert len({certificate.fingerprint(hashes.SHA256()) for certificate in certificates}) == 4
    keys = [certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier) for certificate in certificates]
    assert len({key.value.digest for key in keys}) == 4


def test_long_common_name_is_cut_to_what_a_certificate_holds(authority: Credential) -> None:
    host = ".".join(["a" * 40] * 3)
    assert common_name(issue_server(authority, [host]).certificate.subject) == [host[:64]]
    assert list(names(issue_server(authority, [host]).certificate)) == [x509.DNSName(host)]


@pytest.mark.parametrize("domain", ["workerd.internal", "prod.example.org", "a"])
def test_trust_domain_is_read_back(domain: str) -> None:
    authority = make_authority("the authority", domain)
    assert trust_domain_of(authority.certificate) == domain
    (name,) = names(issue_client(authority, "alice", USER_ID).certificate)
    assert name.value == user_uri(domain, USER_ID)


@pytest.mark.parametrize("make", [itself, a_server, a_client])
def test_pem_gives_back_key_and_certificate(authority: Credential, make: Make) -> None:
    credential = make(authority)
    key = load_pem_private_key(credential.key_pem(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(credential.key, ec.EllipticCurvePrivateKey)
    assert key.private_numbers() == credential.key.private_numbers()
    assert credential.key_pem().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert x509.load_pem_x509_certificate(credential.certificate_pem()) == credential.certificate


def test_strict_verifier_takes_what_is_made_here(authority: Credential) -> None:
    """The verifier of `cryptography` goes by the Web's rules, which are stricter than OpenSSL's."""
    policy = PolicyBuilder().store(Store([authority.certificate]))
    client, server = a_client(authority).certificate, a_server(authority).certificate
    verified = policy.build_client_verifier().verify(client, [])
    assert verified.subjects == [x509.UniformResourceIdentifier(user_uri(DOMAIN, USER_ID))]
    chain = policy.build_server_verifier(x509.DNSName("localhost")).verify(server, [])
    assert chain == [server, authority.certificate]


def test_strict_verifier_refuses_the_one_for_the_other(authority: Credential) -> None:
    policy = PolicyBuilder().store(Store([authority.certificate]))
    with pytest.raises(VerificationError):
        policy.build_client_verifier().verify(a_server(authority).certificate, [])
    with pytest.raises(VerificationError):
        policy.build_server_verifier(x509.DNSName("localhost")).verify(a_client(authority).certificate, [])
