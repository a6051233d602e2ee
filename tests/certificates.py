"""Certificates that no daemon and no client should take, and the folder of a user who presents one."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pki.authority import Credential, issue_client, make_authority
from pki.store import DEFAULT_TRUST_DOMAIN, PkiFolder
from tests.daemon import USER, Daemon

USER_ID = "123e4567-e89b-42d3-a456-426614174000"
EXPIRED = timedelta(minutes=-1)
Issue = Callable[[Credential], Credential]


def issue_any(
    authority: Credential,
    common_name: str,
    names: list[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    begins_in: timedelta = timedelta(minutes=-5),
) -> Credential:
    """Issue a certificate that `pki.authority` would not."""
    key = ec.generate_private_key(ec.SECP256R1())
    begin = datetime.now(UTC) + begins_in
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Credential(key, builder.sign(authority.key, hashes.SHA256()))


def client_folder(daemon: Daemon, path: Path, credential: Credential) -> PkiFolder:
    """Make the folder of a user who trusts the daemon and presents some certificate."""
    folder = PkiFolder(path)
    folder.take_up(USER, credential, daemon.pki.server_ca.read_bytes())
    return folder


def expired(authority: Credential) -> Credential:
    """A certificate of the right authority that was good until a minute ago."""
    return issue_client(authority, USER, USER_ID, EXPIRED)


def of_another_authority(authority: Credential) -> Credential:
    """A certificate of an authority that bears the same name as the right one, and has another key."""
    del authority
    return issue_client(make_authority("workerd client CA", DEFAULT_TRUST_DOMAIN), USER, USER_ID)


def for_servers(authority: Credential) -> Credential:
    """A user's certificate of the right authority in all but its extended key usage."""
    uri = x509.UniformResourceIdentifier(f"spiffe://{DEFAULT_TRUST_DOMAIN}/user/{USER_ID}")
    return issue_any(authority, USER, [uri], ExtendedKeyUsageOID.SERVER_AUTH)


REFUSED_CLIENTS: list[Issue] = [expired, of_another_authority, for_servers]
