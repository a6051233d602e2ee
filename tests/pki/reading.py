"""What lies in an authority's folder, read with nothing of ours."""

from pathlib import Path

from cryptography import x509

from pki.store import PkiFolder


def contents(folder: PkiFolder) -> dict[str, bytes]:
    """Read all files below a folder."""
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def read(certificate: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(certificate.read_bytes())


def names_in(certificate: Path) -> x509.SubjectAlternativeName:
    """Read the alternative names off a certificate."""
    return read(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
