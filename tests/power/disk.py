"""Disks of a test's own: file systems in image files, mounted through loop devices."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

_SIZE_BYTES = 400 << 20
_MEMORY_BYTES = 2 << 30
# Blocks of 4 KiB, as on any real disk; nothing is left for the kernel to initialize in the background.
_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
# A file system may still be mounted in another mount namespace, copied while it was here (mount_namespaces(7)): the
# next one has the same UUID.
_OPTIONS = {"ext4": "rw", "xfs": "nouuid"}
FILE_SYSTEMS = tuple(_MAKE)
_TOOLS = ("cp", "gcc", "losetup", "mount", "pkg-config", "umount")
_COMMAND_SECONDS = 120.0
_RELEASE_SECONDS = 30.0
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class DiskFailed(Exception):
    """A command about a disk failed."""

    def __init__(self, command: tuple[str, ...], problem: str) -> None:
        super().__init__(f"{' '.join(command)} failed: {problem}")


def find_obstacle() -> str:
    """Return why no recorded disk can be made here; empty if one can be."""
    if os.geteuid() != 0:
        return "only root may mount a disk to cut the power of"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(device):
            return f"there is no {device} here"
    for tool in _TOOLS:
        if shutil.which(tool, path=_PATH) is None:
            return f"there is no {tool} here"
    if subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode != 0:
        return "libfuse3-dev is not installed here"
    return ""


def make_image(kind: str, image: Path) -> None:
    """Make an image file, a new one, with an empty file system in it.

    Raises:
        DiskFailed: this and all else here, where it cannot be done.
    """
    image.unlink(missing_ok=True)
    with image.open("xb") as file:
        file.truncate(_SIZE_BYTES)
    _run(*_MAKE[kind], str(image))


def copy_image(source: Path, target: Path) -> None:
    """Copy an image file into a new one; what is a hole in it is one in the copy.

    A file system that is still mounted in another mount namespace writes to the file that was there before.
    """
    target.unlink(missing_ok=True)
    _run("cp", "--reflink=auto", "--sparse=auto", str(source), str(target))


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """Attach a loop device to an image for as long as the context lasts."""
    device = _run("losetup", "--show", "--find", str(image))
    try:
        yield Path(device)
    finally:
        _run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(kind: str, device: Path, mountpoint: Path) -> Iterator[Path]:
    """Mount a device for as long as the context lasts, and then wait until it is released."""
    mountpoint.mkdir(exist_ok=True)
    _run("mount", "-t", kind, "-o", _OPTIONS[kind], str(device), str(mountpoint))
    try:
        yield mountpoint
    finally:
        _unmount(mountpoint)


@contextlib.contextmanager
def memory(mountpoint: Path) -> Iterator[Path]:
    """Keep files in memory for as long as the context lasts: a flush of a disk in an image costs nothing there."""
    mountpoint.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={_MEMORY_BYTES},mode=700", "workerd-test", str(mountpoint))
    try:
        yield mountpoint
    finally:
        _unmount(mountpoint)


def sync_file_system(mountpoint: Path) -> None:
    """Force everything on a file system to its disk."""
    _run("sync", "--file-system", str(mountpoint))


def _unmount(mountpoint: Path) -> None:
    limit = time.monotonic() + _RELEASE_SECONDS
    while True:
        try:
            _run("umount", str(mountpoint))
        except DiskFailed:
            if time.monotonic() > limit:
                _run("umount", "--lazy", str(mountpoint))
                raise
        else:
            return
        time.sleep(0.02)  # nothing tells when the last process of a daemon has let go


def _run(*command: str) -> str:
    environment = os.environ | {"PATH": _PATH}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMMAND_SECONDS, env=environment
        )
    except FileNotFoundError as error:
        raise DiskFailed(command, "it is not installed") from error
    if done.returncode != 0:
        raise DiskFailed(command, done.stderr.strip())
    return done.stdout.strip()
