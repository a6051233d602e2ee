"""A job's own cgroup2 directory, where this process may make one: the kernel then kills a whole job at once.

No controller is enabled, so none is needed: it works on hybrid machines too, whose controllers are version 1.

Whoever may write to a cgroup and to one above both may move processes between them (cgroups(7), Delegation), so no
cgroups are made where another account may change this process's cgroup or one above it: what it moves out of a job's
cgroup would outlive the job. Descendants and marks find the job's processes there.
"""

import contextlib
import os
from pathlib import Path

from system.ownership import Untrusted, is_unmapped, require_trusted

_PARENT = "workerd"
_CONTROLS = ("cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze")


def create(name: str) -> Path | None:
    """Make a cgroup below this process's own (cgroups(7)).

    Returns:
        Its directory, or None where no cgroup2 hierarchy is mounted, this process may not write to it, or another
        account may.
    """
    way = _own_and_above()
    # To move there a process needs to write to the common ancestor's list too (cgroups(7), Delegation).
    if not way or not os.access((own := way[0]) / "cgroup.procs", os.W_OK) or _find_foreign(way) is not None:
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


def find_foreign() -> Untrusted | None:
    """Return which of this process's cgroup and those above it another account may change; None if there is none."""
    return _find_foreign(_own_and_above())


def _find_foreign(way: list[Path]) -> Untrusted | None:
    for control in (directory / name for directory in way for name in _CONTROLS):
        try:
            require_trusted(control)
        except Untrusted as error:
            if not is_unmapped(os.stat(error.path).st_uid):  # as a container sees cgroups of the machine's root
                return error
    return None


def _own_and_above() -> list[Path]:
    """Return this process's cgroup and those above it, as far as they are mounted; none without a cgroup2 hierarchy."""
    mount = _mount_point()
    if mount is None:
        return []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            own = mount / line[3:].lstrip("/")
            return [own, *(above for above in own.parents if above.is_relative_to(mount))]
    return []


def _mount_point() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            return Path(fields.split()[4].encode().decode("unicode_escape"))
    return None
