"""A small disk of a test's own, to be filled."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(disk: Path, size_bytes: int, ballast_bytes: int, kind: str = "tmpfs") -> Iterator[None]:
    """Mount a disk, with a part of it taken by the file `ballast`; skip the test where that cannot be done.

    Args:
        disk: where; made here.
        kind: `tmpfs` (tmpfs(5)), `ext4` in a file beside, or `ramfs`, which has no size and releases no part of a file.
    """
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk to fill")
    disk.mkdir()
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "workerd-test", str(disk)]
    elif kind == "ramfs":
        mount = ["mount", "-t", "ramfs", "-o", "mode=700", "workerd-test", str(disk)]
    else:
        image = disk.with_name("image")
        with image.open("wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        mount = ["mount", "-o", "loop", str(image), str(disk)]
    _run(*mount)
    try:
        (disk / "ballast").write_bytes(bytes(ballast_bytes))
        yield
    finally:
        # Lazily: what may still have a file open there must not keep it in place.
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"there is no {command[0]} here")
    if done.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.decode().strip()}")


def fill(disk: Path) -> None:
    """Leave no room for another block."""
    with (disk / "more").open("wb", buffering=0) as file:
        size = -1
        while size < (size := _extend(file)):
            os.fsync(file.fileno())  # what was just removed is free only when the journal says so


def _extend(file: FileIO) -> int:
    with contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return file.tell()


def make_room(disk: Path) -> None:
    """Free what the ballast and `fill` took."""
    for name in ("ballast", "more"):
        (disk / name).unlink(missing_ok=True)
