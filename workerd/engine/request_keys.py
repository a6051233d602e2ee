"""The ids of jobs with a request key, which are computed from owner, key and a secret of the state directory.

A key leads to the same id in every process and after every restart, and only the daemon can compute it. The keeper
makes the file with the secret. Jobs that were spawned before there was a secret, or with one that is lost, keep their
ids and are still found by their keys.
"""

import hashlib
import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from workerd.engine.errors import FormatTooNew, SpoolCorrupt
from workerd.engine.files import read_whole, replacing
from workerd.engine.folder import JobFolder
from workerd.engine.identity import Version
from workerd.engine.job import JobSpec

log = structlog.get_logger()
FILE_NAME = "request-keys"
_FORMAT = 1
_SECRET_BYTES = 32
_WITHOUT_SECRET = uuid.UUID("6f3c2a51-8d0e-5b7b-9c35-2f1f6f0c9a44")


class _Content(msgspec.Struct, frozen=True):
    """The content of the file.

    Attributes:
        secret: in hexadecimal digits.
        earlier: the ids of jobs that were spawned with an earlier secret, by the ids that their keys lead to now.
        check: a digest of both.
    """

    format: int
    secret: str
    earlier: dict[str, str]
    check: str


@dataclass(frozen=True, slots=True)
class RequestKeys:
    """Computes the ids that request keys lead to."""

    _secret: bytes = field(repr=False)
    _earlier: dict[str, str]

    def job_id(self, owner_id: str, key: str) -> str:
        """Return the id of the job that is spawned with a key of an owner's."""
        text = f"{owner_id} {key}".encode()  # unambiguous: an owner's id has no space
        digest = hashlib.blake2b(text, digest_size=16, key=self._secret, person=b"workerd job id")
        return str(uuid.UUID(bytes=digest.digest(), version=4))  # like the id of a job without a key

    def earlier_ids(self, owner_id: str, key: str) -> list[str]:
        """Return the ids that the job may have if it was spawned without this secret."""
        found = self._earlier.get(self.job_id(owner_id, key))
        return [_id_without_secret(owner_id, key), *([] if found is None else [found])]


def establish(path: Path, jobs: Path) -> None:
    """Make the file, unless it is there and whole. Only the holder of the state directory may call this.

    Args:
        path: of the file.
        jobs: the directory of the jobs' folders.

    Raises:
        FormatTooNew: a newer workerd made it.
        OSError: it cannot be read or written.
    """
    problem = "it is missing"
    try:
        read(path)
    except FormatTooNew:
        raise
    except FileNotFoundError:
        pass
    except SpoolCorrupt as error:
        problem = error.problem
    else:
        return
    secret = secrets.token_bytes(_SECRET_BYTES)
    keys = RequestKeys(secret, {})
    earlier = {keys.job_id(spec.owner.id, spec.request_key): spec.id for spec in _specs_of_a_lost_secret(jobs)}
    if earlier:
        log.warning(
            "the secret of the request keys was lost and made again; earlier jobs are still found by their keys",
            file=str(path),
            problem=problem,
            jobs=len(earlier),
        )
    if path.is_dir():
        path.rmdir()
    with replacing(path) as file:
        content = _Content(_FORMAT, secret.hex(), earlier, _check(secret, earlier))
        file.write(msgspec.json.encode(content))


def read(path: Path) -> RequestKeys:
    """Read the file.

    Raises:
        FileNotFoundError: there is none yet.
        SpoolCorrupt: it is damaged.
        FormatTooNew: a newer workerd made it.
    """
    data = read_whole(path)
    try:
        version = msgspec.json.decode(data, type=Version).format
        if version > _FORMAT:  # first: a newer format may have other fields
            raise FormatTooNew(path, version)
        content = msgspec.json.decode(data, type=_Content)
        secret = bytes.fromhex(content.secret)
    except ValueError as error:  # MsgspecError and UnicodeDecodeError, too
        raise SpoolCorrupt(path, str(error)) from error
    if content.check != _check(secret, content.earlier):
        raise SpoolCorrupt(path, "its checksum is wrong")
    return RequestKeys(secret, content.earlier)


def _check(secret: bytes, earlier: dict[str, str]) -> str:
    data = msgspec.json.encode([secret.hex(), earlier], order="sorted")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _id_without_secret(owner_id: str, key: str) -> str:
    """Return the id that a job had before there was a secret."""
    return str(uuid.uuid5(_WITHOUT_SECRET, f"{owner_id} {key}"))


def _specs_of_a_lost_secret(jobs: Path) -> Iterator[JobSpec]:
    """Iterate over the specs of the jobs whose ids were computed with an earlier secret."""
    for path in jobs.iterdir() if jobs.is_dir() else ():
        try:
            spec = JobFolder(path).read_spec()
        except (OSError, SpoolCorrupt):  # damaged, being made, or of a newer format: its key is unknown
            continue
        if spec.request_key and spec.id != _id_without_secret(spec.owner.id, spec.request_key):
            yield spec
