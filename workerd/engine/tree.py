"""A process's descendants: finding them, signalling them.

A process that double-forks away from its parent is adopted by its nearest subreaper, which a supervisor is, so it stays
in the supervisor's tree however it tries to leave (PR_SET_CHILD_SUBREAPER(2const)).
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from system import pidfd
from workerd.engine.errors import SHORTAGES

MOST_HELD = 8  # a job may have more processes than the daemon has descriptors
# A process may say that its environment is of any length (PR_SET_MM(2const)). This much is what execve(2) takes with a
# job's soft limit of its stack (`workerd.engine.start_state`).
_ENVIRONMENT_BYTES = 1 << 21


def descendants(pid: int) -> Iterator[tuple[int, int]]:
    """Walk the processes below one process, parents before children.

    The walk is no snapshot: what is forked meanwhile may be missed, so whoever wants all of them walks again until
    none is left.

    Yields:
        Each process's id and its parent's.
    """
    pending = [(child, pid) for child in _children(pid)]
    while pending:
        child, parent = pending.pop()
        yield child, parent
        pending += [(below, child) for below in _children(child)]


def signal_descendants(pid: int, *signals: signal.Signals) -> None:
    """Send signals to every process below one process that this process is or stands above.

    A process is signalled through a pidfd, and only if it still has the parent that it was found under, or was adopted
    by `pid` since: an id that was recycled meanwhile belongs to a process with another parent.
    """
    for descendant, parent in list(descendants(pid)):  # all of them, before any dies and its children move
        with contextlib.suppress(ProcessLookupError), pidfd.hold(descendant) as handle:
            if parent_of(descendant) in (parent, pid):
                for number in signals:
                    # PermissionError: a program with the set-user-ID bit may be out of our reach; its end is awaited.
                    with contextlib.suppress(PermissionError):
                        signal.pidfd_send_signal(handle, number)


def kill_marked(variable: str, uid: int) -> list[int]:
    """Send SIGKILL to every process of one account that was started with an environment variable.

    It is the last means, for a job whose supervisor is gone and that had no cgroup. It does not find a process that was
    given another environment since (proc_pid_environ(5)), nor one that took on another account in any way, as by a
    set-user-ID program: another account chose its environment. What is forked in the meantime may be missed: look again
    until nothing is found.

    Args:
        variable: as NAME=VALUE.
        uid: of the account.

    Returns:
        A pidfd of each, for the caller to close, of `MOST_HELD` at most.

    Raises:
        OSError: this process lacks descriptors or memory for it.
    """
    wanted = b"\0%b\0" % variable.encode()
    handles: list[int] = []
    with contextlib.ExitStack() as undo:
        for name in os.listdir("/proc"):
            if name.isdecimal() and _is_marked(int(name), wanted, uid):
                with contextlib.suppress(ProcessLookupError), pidfd.hold(int(name)) as handle:
                    # Held before it is looked at again: an id that was recycled in between would be another's.
                    if _is_marked(int(name), wanted, uid):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                        if len(handles) < MOST_HELD:
                            handles.append(os.dup(handle))
                            undo.callback(os.close, handles[-1])
        undo.pop_all()
    return handles


def _is_marked(pid: int, wanted: bytes, uid: int) -> bool:
    """Return whether a process is one account's alone and has a variable in its environment.

    Args:
        wanted: the variable, as NAME=VALUE between two zero bytes.
    """
    try:
        # The account first: the environment of another's process is none of ours to wait for.
        status = Path(f"/proc/{pid}/status").read_bytes()
        if status.partition(b"\nUid:")[2].split(maxsplit=3)[:3] != [b"%d" % uid] * 3:  # real, effective, saved
            return False
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as environment:
            return wanted in b"\0%b" % environment.read(_ENVIRONMENT_BYTES)
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return False  # it has ended, or cannot be read: it is hidden, or has not the environment that it says it has


def parent_of(pid: int) -> int | None:
    """Return the id of a process's parent; None when there is no such process."""
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def start_ticks(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the boot; None when there is no such process.

    One that has ended and was not reaped yet counts as none.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in (b"Z", b"X") else int(fields[19])


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped, by SIGSTOP or a debugger."""
    fields = _stat(pid)
    return fields is not None and fields[0] in (b"T", b"t")


def name_of(pid: int) -> str:
    """Return the name that a process gave itself (proc_pid_comm(5)); empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat(pid: int) -> list[bytes] | None:
    """Read the fields of proc_pid_stat(5) from the third, the state, on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(b")")[2].split()


def _children(pid: int) -> list[int]:
    children: list[int] = []
    # proc_tid_children(5); a process that ended meanwhile has none.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_bytes().split())
    return children
