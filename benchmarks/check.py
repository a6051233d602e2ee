"""Checking what was moved: a benchmark that loses bytes has no figure."""

import os
from pathlib import Path

import xxhash

_PIECE_BYTES = 1 << 20


class Damaged(Exception):
    """What arrived is not what was sent."""


def require(holds: bool, otherwise: str) -> None:
    """Go on only if something holds.

    Raises:
        Damaged: it does not, which `otherwise` says in words.
    """
    if not holds:
        raise Damaged(otherwise)


def write_random(path: Path, size_bytes: int) -> bytes:
    """Write a file that nothing can compress, and return its XXH3-128 digest."""
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for piece in _pieces(size_bytes):
            data = os.urandom(piece)
            digest.update(data)
            file.write(data)
    return digest.digest()


def digest_of_zeros(size_bytes: int) -> bytes:
    """Tell the XXH3-128 digest of so many bytes of /dev/zero."""
    digest, zeros = xxhash.xxh3_128(), bytes(_PIECE_BYTES)
    for piece in _pieces(size_bytes):
        digest.update(zeros[:piece])
    return digest.digest()


def require_file(path: Path, size_bytes: int, digest: bytes) -> None:
    """Check a file's content.

    Raises:
        Damaged: it is something else.
    """
    found, found_bytes = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(_PIECE_BYTES):
            found.update(data)
            found_bytes += len(data)
    require(found_bytes == size_bytes, f"{path} has {found_bytes} bytes instead of {size_bytes}")
    require(found.digest() == digest, f"{path} does not hold what was sent")


def _pieces(size_bytes: int) -> list[int]:
    whole, rest = divmod(size_bytes, _PIECE_BYTES)
    return [_PIECE_BYTES] * whole + [rest] * bool(rest)
