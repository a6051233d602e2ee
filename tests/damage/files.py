"""The files of a state directory as victims of damage: found by walking, never by name."""

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.damage.mutations import ON_BYTES, Operation, change, differing_range

_SPARED = ("pki", "endpoint", "lock", "stderr")
"""Names in a state directory: certificates, what marks a live daemon, and what these tests write themselves."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A file that can be damaged.

    Attributes:
        area: "jobs", or the first part of its path: the place whose promises count.
        job: the label of its job; empty outside of jobs.
        name: its path within the job's folder or the state directory; empty when it is to be drawn.
        size: in bytes; zero for what is not a regular file.
        is_linked: whether it has other names, so that damage to its bytes is damage to all of them.
    """

    area: str
    job: str
    name: str
    size: int = 0
    is_linked: bool = False

    @property
    def kind(self) -> str:
        """What files of other jobs it is like."""
        return f"{self.area}/{self.name}"

    def __str__(self) -> str:
        return f"{self.name or 'a file'} of job {self.job}" if self.job else self.name


def find_victims(state: Path, labels: dict[str, str]) -> list[Victim]:
    """Find every file that can be damaged.

    Args:
        state: a state directory.
        labels: the labels of its jobs by their ids.
    """
    found = []
    for path in sorted(state.rglob("*")):
        parts, attributes = path.relative_to(state).parts, path.lstat()
        if parts[0] in _SPARED or stat.S_ISDIR(attributes.st_mode):
            continue
        details = (attributes.st_size, attributes.st_nlink > 1)
        if parts[0] == "jobs" and len(parts) > 2:
            if parts[1] in labels:
                found.append(Victim("jobs", labels[parts[1]], "/".join(parts[2:]), *details))
        else:
            area = "catalog" if parts[0].startswith("catalog") else "audit" if parts[0] == "audit" else "state"
            found.append(Victim(area, "", "/".join(parts), *details))
    return sorted(found, key=lambda victim: (victim.area, victim.job, victim.name))


def damage(operation: Operation, path: Path, other: Path | None, random: Random) -> str | None:
    """Damage a file in its place.

    Args:
        operation: what to do.
        path: the file; it need not be a regular one.
        other: the file to swap it with.

    Returns:
        A description; None when the operation changes nothing about such a file.
    """
    if operation in ON_BYTES:
        return _damage_bytes(operation, path, random)
    size = path.lstat().st_size
    match operation:
        case Operation.SWAP_FILES:
            return None if other is None or _are_same(path, other) else _swap(path, other)
        case Operation.REMOVE:
            path.unlink()
            return f"it was removed; it had {size} bytes"
        case Operation.EMPTY:
            if path.is_file() and size == 0:
                return None
            path.unlink()
            path.touch(0o600)
            return f"an empty file took the place of its {size} bytes"
        case Operation.DIRECTORY:
            path.unlink()
            path.mkdir(0o700)
            return f"a directory took the place of its {size} bytes"
        case _:
            raise AssertionError(f"nothing is known about {operation}")


def copy_state(source: Path, target: Path) -> None:
    """Copy a state directory: times, holes and hard links within it are kept."""
    links: dict[tuple[int, int], Path] = {}

    def copy(origin: str, place: str) -> None:
        found = os.lstat(origin)
        if stat.S_ISFIFO(found.st_mode):
            os.mkfifo(place, stat.S_IMODE(found.st_mode))
        elif (first := links.get((found.st_dev, found.st_ino))) is not None:
            os.link(first, place)
            return
        else:
            _copy_sparse(origin, place)
            if found.st_nlink > 1:
                links[found.st_dev, found.st_ino] = Path(place)
        shutil.copystat(origin, place)

    shutil.copytree(source, target, copy_function=copy, symlinks=True)


def _copy_sparse(origin: str, place: str) -> None:
    """Copy a file's data and leave its holes (lseek(2), SEEK_DATA)."""
    with open(origin, "rb") as source, open(place, "wb") as target:
        size, offset = os.fstat(source.fileno()).st_size, 0
        with contextlib.suppress(OSError):  # ENXIO: no data follows
            while offset < size:
                offset = os.lseek(source.fileno(), offset, os.SEEK_DATA)
                end = os.lseek(source.fileno(), offset, os.SEEK_HOLE)
                while offset < end:
                    offset += os.copy_file_range(source.fileno(), target.fileno(), end - offset, offset, offset)
        os.ftruncate(target.fileno(), size)


def _damage_bytes(operation: Operation, path: Path, random: Random) -> str | None:
    if not path.is_file():
        return None
    before = path.read_bytes()
    changed = change(operation, before, random)
    if changed is None:
        return None
    after, description = changed
    start, end = differing_range(before, after)
    with path.open("r+b") as file:  # in its place, for whoever has it open and whatever else is linked to it
        file.seek(start)
        file.write(after[start:end])
        file.seek(min(len(before), len(after)))
        file.write(after[len(before) :])
        file.truncate(len(after))
    return description


def _are_same(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return stat.S_IFMT(one.lstat().st_mode) == stat.S_IFMT(other.lstat().st_mode)
    return one.samefile(other) or one.read_bytes() == other.read_bytes()


def _swap(one: Path, other: Path) -> str:
    aside = one.with_name(f"{one.name}.aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return f"its {other.lstat().st_size} bytes were swapped with {one.lstat().st_size} bytes of the other's"
