"""A job's own cgroup2 directory, where this process may make one: the kernel then kills a whole job at once.

No controller is enabled, so none is needed: it works on hybrid machines too, whose controllers are version 1.
"""

import contextlib
import os
from pathlib import Path

_PARENT = "workerd"


def create(name: str) -> Path | None:
    """Make a cgroup below this process's own (cgroups(7)).

    Returns:
        Its directory, or None where no cgroup2 hierarchy is mounted or this process may not write to it.
    """
    own = _own_directory()
    if own is None:
        return None
    directory = own / _PARENT / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "cgroup.kill").exists():  # Linux before 5.14
            directory.rmdir()
            return None
    except OSError:
        return None
    return directory


def enter(directory: Path) -> None:
    """Move this process into a cgroup."""
    (directory / "cgroup.procs").write_text("0")


def kill(directory: Path) -> None:
    """Send SIGKILL to every process in a cgroup and below it, those that are being forked included."""
    with contextlib.suppress(FileNotFoundError):
        (directory / "cgroup.kill").write_text("1")


def remove(directory: Path) -> None:
    """Remove a cgroup whose processes have all ended; one that still has some stays."""
    with contextlib.suppress(OSError):
        for below in sorted(directory.rglob("*/"), reverse=True):
            below.rmdir()
        directory.rmdir()


def _own_directory() -> Path | None:
    mount = _mount_point()
    if mount is None:
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = mount / line[3:].lstrip("/")
            # To move there a process needs to write to the common ancestor's list too (cgroups(7), Delegation).
            return own if os.access(own / "cgroup.procs", os.W_OK) else None
    return None


def _mount_point() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4].encode().decode("unicode_escape"))
    return None
