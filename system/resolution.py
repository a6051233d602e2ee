"""What a path leads through, found as the kernel finds it (path_resolution(7)), from the root to the last step."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST_LINKS = 40  # as the kernel follows
_ENDS = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Step:
    """A folder, a link or a file that a path leads through.

    Attributes:
        path: where it is. No folder of this path is a link.
        found: what the kernel finds there; of a link, the link itself.
        is_last: whether the path ends here.
        is_on_new_device: whether it is on another device than the folder that it is in, as where a file system is
            mounted.
    """

    path: Path
    found: os.stat_result
    is_last: bool
    is_on_new_device: bool

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.found.st_mode)


@dataclass(frozen=True, slots=True)
class Device:
    """What is mounted from a device.

    Attributes:
        kind: the type of the file system.
        server: the account that serves a FUSE file system, and that decides what it has (mount.fuse3(8)); None for
            the kernel's own.
    """

    kind: str
    server: int | None


def steps(path: Path) -> Iterator[Step]:
    """Iterate over what a path leads through.

    Each step is opened in the folder before it, which is open, without following links (openat(2), O_PATH). A link is
    followed, by its text, when the next step is asked for. The iteration ends early where opening the path would fail.

    The text of a magic link of procfs, such as /proc/PID/root, is not what the kernel follows (proc_pid_root(5)): the
    caller must not go on after a link on procfs.
    """
    names = [*reversed(path.absolute().parts[1:])]
    here, folder = Path("/"), _open("/")
    device = os.fstat(folder).st_dev
    links = 0
    try:
        yield Step(here, os.fstat(folder), not names, is_on_new_device=False)
        while names:
            name = names.pop()
            try:
                opened = _open(name, folder)
            except OSError as error:
                if error.errno in _ENDS:
                    return
                raise
            try:
                found = os.fstat(opened)
                is_link = stat.S_ISLNK(found.st_mode)
                target = os.readlink("", dir_fd=opened) if is_link else ""
            except BaseException:
                os.close(opened)
                raise
            there = here.parent if name == ".." else here / name
            is_on_new_device, device = found.st_dev != device, found.st_dev
            if not is_link:
                os.close(folder)
                here, folder = there, opened
                yield Step(there, found, not names, is_on_new_device)
                continue
            os.close(opened)
            yield Step(there, found, is_last=False, is_on_new_device=is_on_new_device)
            links += 1
            if links > _MOST_LINKS:
                return
            names += [part for part in reversed(Path(target).parts) if part != "/"]
            if target.startswith("/"):
                root = _open("/")
                os.close(folder)
                here, folder = Path("/"), root
                device = os.fstat(folder).st_dev
                yield Step(here, os.fstat(folder), not names, is_on_new_device=False)
    finally:
        os.close(folder)


def find_device(number: int) -> Device | None:
    """Return what is mounted from a device (proc_pid_mountinfo(5)); None if nothing is that this process can see.

    Args:
        number: as `st_dev`.
    """
    wanted = f"{os.major(number)}:{os.minor(number)}"
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:  # nor is there a procfs then
        return None
    for line in mounts:
        fields = line.split(" ")
        if fields[2] == wanted:
            kind, _, options = fields[fields.index("-", 6) + 1 :][:3]
            users = [option.partition("=")[2] for option in options.split(",") if option.startswith("user_id=")]
            return Device(kind, int(users[0]) if users else None)
    return None


def _open(name: str, folder: int | None = None) -> int:
    """Open a step, whatever it is, without following it."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # As a path that goes on mounts what is mounted when it is used (autofs(5)).
        return os.open(name, flags | os.O_DIRECTORY, dir_fd=folder)
    except NotADirectoryError:
        return os.open(name, flags, dir_fd=folder)
