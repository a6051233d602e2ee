"""Which list of revoked certificates was the newest in use: an older one would pardon who was revoked since."""

import os
from pathlib import Path

import msgspec
from cryptography import x509

from pki.errors import ListOutdated, Missing
from pki.files import read_bytes, replace_file
from pki.revocation import CrlVersion, key_digest, version_of
from system.file_lock import lock_within
from workerd.engine.files import private

_LOCK_SECONDS = 2.0  # blocks the event loop


class _Kept(msgspec.Struct, frozen=True):
    """The newest list of one authority, as it stands in the file."""

    number: int
    digest: str


class NewestList:
    """The newest list of each authority that was in use, in a file that several processes share.

    An authority that is replaced begins anew: its lists say nothing of another's certificates.

    Args:
        path: the file, outside of the folder of certificates, which may come from a backup as a whole.

    Raises:
        Missing: the file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept = self._read()

    def require(self, path: Path, crl: x509.CertificateRevocationList | None, authority: x509.Certificate) -> None:
        """Refuse a list that is older than the newest, or none where there was one.

        Raises:
            ListOutdated: it is.
        """
        kept = self._kept.get(key_digest(authority))
        if kept is None:
            return
        if crl is None:
            raise ListOutdated(path, f"it is not there any more, and had number {kept.number}", self._path)
        found = version_of(crl, authority)
        if found.number < kept.number:
            problem = f"it has number {found.number}, and one with number {kept.number} was in use"
            raise ListOutdated(path, problem, self._path)
        if found.number == kept.number > 0 and found.digest != kept.digest:
            raise ListOutdated(path, f"another one with its number {kept.number} was in use", self._path)

    def keep(self, version: CrlVersion) -> None:
        """Remember a list that is in use, durably.

        Raises:
            OSError: it cannot be written; until the process ends it is remembered all the same.
        """
        new = _Kept(version.number, version.digest)
        self._kept[version.authority] = new
        # Not of the folder: an account that may read it could hold its lock (flock(2)).
        lock = self._path.with_suffix(".lock")
        with open(lock, "ab", opener=private) as file:
            lock_within(file.fileno(), lock, _LOCK_SECONDS)
            written = self._read()
            if (old := written.get(version.authority)) is None or (old.number <= new.number and old != new):
                written[version.authority] = new
                replace_file(self._path, msgspec.json.format(msgspec.json.encode(written)) + b"\n")

    def _read(self) -> dict[str, _Kept]:
        if not os.path.lexists(self._path):
            return {}
        advice = "put it back; without it, an older list of revoked certificates would be taken"
        try:
            return msgspec.json.decode(read_bytes(self._path, advice), type=dict[str, _Kept])
        except ValueError as error:  # of msgspec, too
            raise Missing(self._path, str(error), advice) from error
