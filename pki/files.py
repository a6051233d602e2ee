"""Certificates and keys as files: a pair is made once, read as a whole, and replaced as a whole.

Two files cannot be renamed at one stroke, so a pair is replaced in steps that leave a whole pair after each:

    NAME.key.new, NAME.crt.new are written    the old pair counts
    NAME.crt.new becomes NAME.crt             the new certificate counts, with NAME.key.new
    NAME.key.new becomes NAME.key             the new pair counts

Whoever finds that certificate and key do not fit tries `new_key_path` (`pki.tls` does). A replacement that was cut off
is finished, or undone, by the next.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pki.errors import AlreadyExists, Missing, NotTrusted
from system import ownership
from system.file_lock import lock_within

TYPE_CHECKING = False
if TYPE_CHECKING:  # cryptography is slow to import and only needed where certificates are made
    from cryptography import x509

    from pki.authority import Credential

REPLACED = "replaced"
OF_OTHERS = ("clients", "servers")
"""The folders within an authority's that hold what others take away."""
_KEY_MODE = 0o600
_LOCK_SECONDS = 20.0  # nothing slow is done with the lock
_PUBLIC_MODE = 0o644


def key_path(certificate: Path) -> Path:
    """Tell where the private key of a certificate lies."""
    return certificate.with_name(certificate.stem + ".key")


def new_key_path(certificate: Path) -> Path:
    """Tell where the private key lies of a certificate that is just being replaced."""
    return certificate.with_name(certificate.stem + ".key.new")


def require_trusted(path: Path) -> None:
    """Raise an error if other accounts can change what a path leads to, or read it if it is a key.

    Raises:
        Missing: it cannot be found out, for want of descriptors for instance.
        NotTrusted: they can.
    """
    try:
        ownership.require_trusted(path, secret=path.name.endswith((".key", ".key.new")))
    except ownership.Untrusted as error:
        raise NotTrusted(str(error)) from error
    except OSError as error:
        raise Missing(path, error.strerror or str(error), "try again when that has been mended") from error


def require_trusted_folder(folder: Path) -> None:
    """Raise an error if other accounts can change an authority's folder or a file in it, or read a key in it.

    Raises:
        NotTrusted: they can.
    """
    require_trusted(folder)
    for path in sorted(folder.glob("*")):
        require_trusted(path)


def read_bytes(path: Path, advice: str) -> bytes:
    """Read a file.

    Raises:
        Missing: it cannot be read; the advice goes with it.
        NotTrusted: other accounts can change it.
    """
    require_trusted(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise Missing(path, error.strerror or str(error), advice) from error


def has_content(path: Path, data: bytes) -> bool:
    """Return whether a file has this content; True if this account cannot read it."""
    try:
        return path.is_file() and path.read_bytes() == data  # a FIFO would be waited for
    except FileNotFoundError:
        return False
    except OSError:
        return True


def load_certificate(path: Path) -> "x509.Certificate":
    """Read a certificate.

    Raises:
        Missing: it cannot be read.
    """
    from cryptography import x509

    if path.parent.name in OF_OTHERS:
        folder, what = path.parent.parent, "there is no certificate of this name, and those that there are are shown by"
        advice = f"{what} `workerctl --pki-dir {shlex.quote(str(folder))} pki list`"
    else:
        make = f"workerctl --pki-dir {shlex.quote(str(path.parent))} pki init"
        advice = f"do this where the authority is, or make one with `{make}`"
    try:
        return x509.load_pem_x509_certificate(read_bytes(path, advice))
    except (ValueError, x509.InvalidVersion) as error:  # which is no ValueError
        raise Missing(path, "it holds no certificate that can be read", "put back the one that was there") from error


def load_crl(path: Path, authority: "x509.Certificate") -> "x509.CertificateRevocationList":
    """Read the list of an authority's revoked certificates.

    Raises:
        Missing: it cannot be read, is another authority's, or has expired.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    from pki.revocation import is_of

    advice = "put back the one that was there"
    try:
        crl = x509.load_pem_x509_crl(read_bytes(path, advice))
        ours = is_of(crl, authority)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:  # of the authority's key, too
        raise Missing(path, "it holds no list of revoked certificates that can be read", advice) from error
    if not ours:
        raise Missing(path, "it is not signed by the authority of the clients", advice)
    if crl.next_update_utc is not None and crl.next_update_utc < datetime.now(UTC):
        raise Missing(path, "it has expired", "have the authority of the clients sign a new one")
    return crl


def load_pair(certificate: Path, key: Path | None = None) -> "Credential":
    """Read a certificate with its key.

    Args:
        key: where the key is; None for beside the certificate.

    Raises:
        Missing: one of them cannot be read, or they do not fit.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from pki.authority import Credential, PrivateKey

    path = key or key_path(certificate)
    advice = f"put the key of {certificate.name} there"
    loaded = load_certificate(certificate)
    try:
        private = load_pem_private_key(read_bytes(path, advice), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Missing(path, "it holds no key that can be read", advice) from error
    if not isinstance(private, PrivateKey):
        raise Missing(path, "it holds no elliptic-curve key", advice)
    if loaded.public_key() != private.public_key():
        raise Missing(certificate, "it does not fit its key", f"put the key of {certificate.name} beside it")
    return Credential(private, loaded)


def require_free(certificate: Path, advice: str) -> None:
    """See that a certificate and its key can be written.

    Raises:
        AlreadyExists: one of them is there; the advice goes with it.
    """
    for path in (certificate, key_path(certificate)):
        if os.path.lexists(path):
            raise AlreadyExists(path, advice)


def make_folder(folder: Path) -> None:
    """Make a folder that is closed to other accounts, unless it exists.

    Raises:
        NotTrusted: other accounts can change it, or a folder above it.
    """
    try:
        ownership.make_folder(folder)
    except ownership.Untrusted as error:
        raise NotTrusted(str(error)) from error


def write_pair(certificate: Path, credential: "Credential") -> None:
    """Write a certificate and its key, in a folder that is made if it is not there.

    Raises:
        AlreadyExists: one of them is there.
    """
    make_folder(certificate.parent)
    # The key first: a certificate that is there has its key.
    _write_new(key_path(certificate), credential.key_pem(), _KEY_MODE)
    _write_new(certificate, credential.certificate_pem(), _PUBLIC_MODE)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file and its mode to a folder, which is made if it does not exist.

    Only one process at a time may copy to a target.

    Raises:
        AlreadyExists: the target exists with other content.
        Missing: the source cannot be read.
    """
    make_folder(target.parent)
    data = read_bytes(source, "put it back")
    if os.path.lexists(target):
        if read_bytes(target, "") != data:
            raise AlreadyExists(target, "it is another authority's: choose another folder")
        return
    new = target.with_name(target.name + ".new")
    new.unlink(missing_ok=True)
    _write_new(new, data, source.stat().st_mode & 0o777)
    new.rename(target)
    sync_folder(target.parent)


def replace_pair(certificate: Path, credential: "Credential") -> None:
    """Put another certificate and key in the place of those that are there; these are kept beside, under their date.

    One process at a time may do this to a pair.

    Raises:
        Missing: the pair that is there cannot be read.
    """
    new_certificate, new_key = new_certificate_path(certificate), new_key_path(certificate)
    _finish_replacement(certificate)
    _keep(certificate)
    _write_new(new_key, credential.key_pem(), _KEY_MODE)
    _write_new(new_certificate, credential.certificate_pem(), _PUBLIC_MODE)
    new_certificate.rename(certificate)
    new_key.rename(key_path(certificate))
    sync_folder(certificate.parent)


def stamp(path: Path) -> tuple[int, ...] | None:
    """Tell a file apart from others that take its place, without reading it; None if there is none to be told."""
    try:
        found = os.stat(path)
    except OSError:  # why it cannot be read is told when it is
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def replace_file(path: Path, data: bytes) -> None:
    """Put a file for all to read in the place of another, if there is one; whoever reads it gets the old or the new.

    One process at a time may do this to a file.
    """
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    _write_new(new, data, _PUBLIC_MODE)
    new.rename(path)
    sync_folder(path.parent)  # a power cut must not bring back whom a list of revoked certificates refuses


def new_certificate_path(certificate: Path) -> Path:
    """Tell where a certificate lies that is going to replace another."""
    return certificate.with_name(certificate.name + ".new")


@contextlib.contextmanager
def locked(certificate: Path) -> Iterator[None]:
    """Keep other processes from acting for an authority meanwhile.

    Args:
        certificate: the authority's.

    Raises:
        LockHeld: another process acts for it for too long.
        Missing: its key cannot be read.
    """
    path = key_path(certificate)
    require_trusted(path)
    try:
        file = path.open("rb")
    except OSError as error:
        advice = f"do this where the authority is: {path.name} is there, and stays there"
        raise Missing(path, error.strerror or str(error), advice) from error
    with file:
        lock_within(file.fileno(), path, _LOCK_SECONDS)
        if os.fstat(file.fileno()).st_nlink == 0:
            raise Missing(path, "it was moved just now", "repeat the command")
        yield


@contextlib.contextmanager
def locked_folder(folder: Path, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of a folder, so that only one process at a time changes it.

    Args:
        folder: the folder.
        seconds: how long to wait for another process that holds the lock.

    Raises:
        LockHeld: it holds the lock for longer.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock_within(descriptor, folder, seconds)
        yield
    finally:
        os.close(descriptor)


def _finish_replacement(certificate: Path) -> None:
    """Finish a replacement that was cut off after its certificate took effect, or undo one that did not come so far."""
    new_key = new_key_path(certificate)
    if new_key.exists():
        try:
            load_pair(certificate)
        except Missing:
            load_pair(certificate, new_key)
            new_key.rename(key_path(certificate))
    for path in (new_key, new_certificate_path(certificate)):
        path.unlink(missing_ok=True)


def _keep(certificate: Path) -> None:
    folder = certificate.parent / REPLACED
    make_folder(folder)
    load_pair(certificate)
    kept = folder / f"{certificate.stem}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.crt"
    _write_new(key_path(kept), key_path(certificate).read_bytes(), _KEY_MODE)
    _write_new(kept, certificate.read_bytes(), _PUBLIC_MODE)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise AlreadyExists(path, "somebody else made it meanwhile") from None
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
