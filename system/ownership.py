"""Who can change what a path leads to, as sshd(8) asks before it uses a file (sshd_config(5), StrictModes).

A path is trusted if root and this process's account are the only ones who can change what it leads to. Every folder on
the way, every link and the file itself must belong to one of them, and others must not be able to write to it, except:

- Others may write to a folder on the way if it is sticky, as /tmp is: they cannot replace our files there (inode(7)).
- A group may write if it has no other members, as with user-private groups and umask 002.
- Folders above the account's home directory are not checked on the way into it. They are the administrator's.

Links of procfs to what a process has open are refused: their text is not where they lead. So is a FUSE file system that
another account serves: it says of its files what that account likes.

Nothing that was checked can be exchanged by another account before it is used, though it is opened by its path again.
The steps of a path are checked from the root on, as the kernel resolves them (`system.resolution`), and the first that
is not trusted ends the check. By then each step before it leads to the same file for good: to put another one there,
an account must be able to write to the folder that it is in, which was checked just before, and if the folder is
sticky, must own the step or the folder (unlink(2), rename(2)). What a link says never changes (symlink(7)). Mounts are
root's, but for FUSE. The next step is looked up in the folder that was checked, which is open.
"""

import contextlib
import errno
import grp
import os
import pwd
import shlex
import stat
from pathlib import Path

from system.resolution import Step, find_device, steps

_ALL_UIDS = ["0", "0", "4294967295"]
_ACL = "system.posix_acl_access"
_GROUP_WRITE, _OTHERS_WRITE = stat.S_IWGRP, stat.S_IWOTH


class Untrusted(Exception):
    """An account other than root and this process's can change a file, or read a secret one.

    Attributes:
        path: the file or folder, which may be above the one that was asked about.
        problem: what is wrong with it.
        is_anothers: whether it belongs to another account.
    """

    def __init__(self, path: Path, problem: str, remedy: str, *, is_anothers: bool = False) -> None:
        self.path = path
        self.problem = problem
        self.is_anothers = is_anothers
        super().__init__(f"{path} is refused: {problem}: {remedy}")


def require_trusted(path: Path, *, secret: bool = False) -> None:
    """Raise an error unless a path is trusted. Of a path that does not exist, the folders that do exist are checked.

    Args:
        secret: whether it is a file that other accounts must not be able to read either. The group of a file of root's
            may read it: root chose that group.

    Raises:
        Untrusted: for the first step that is not trusted.
    """
    home = _home()
    above = () if home is None else home.parents
    unchecked: list[Step] = []  # on the way into the home directory, as long as it leads there
    for step in steps(path):
        unchecked.append(step)
        if step.path in above:
            continue
        if step.path == home:
            del unchecked[:-1]
        _check_all(unchecked, secret=secret)
        unchecked.clear()
    _check_all(unchecked, secret=secret)


def require_trusted_content(folder: Path) -> None:
    """Raise an error unless a folder and everything directly in it is trusted. It need not exist.

    Raises:
        Untrusted: as `require_trusted`.
    """
    require_trusted(folder)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for name in sorted(os.listdir(folder)):
            require_trusted(folder / name)


def make_folder(path: Path) -> None:
    """Make a trusted folder that is closed to other accounts, unless it exists.

    Raises:
        OSError: it cannot be made.
        Untrusted: it exists and is not trusted, or a folder above it is not.
    """
    require_trusted(path)
    for parent in reversed(path.parents):
        if not os.path.lexists(parent):
            with contextlib.suppress(FileExistsError):  # another process made it
                os.mkdir(parent, 0o755)  # not as the umask has it, which may let others write
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    require_trusted(path)


def open_own(path: Path, flags: int) -> int:
    """Open a file of this process's account, which must not be a link, and close it to other accounts.

    Returns:
        A descriptor, which is close-on-exec. The file is made if the flags say so.

    Raises:
        OSError: it cannot be opened.
        Untrusted: it is a link, no regular file, or belongs to another account.
    """
    remove = f"remove it with `rm {shlex.quote(str(path))}`"
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Untrusted(path, "it is a link", remove) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Untrusted(path, "it is not a regular file", remove)
        if found.st_uid != os.geteuid():
            raise Untrusted(path, f"it belongs to {account_name(found.st_uid)}", remove, is_anothers=True)
        if stat.S_IMODE(found.st_mode) & 0o077:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def account_name(uid: int) -> str:
    """Return the name of an account, or its number where it has no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _check_all(several: list[Step], *, secret: bool) -> None:
    for step in several:
        _check_device(step)
        _check(step.path, step.found, is_last=step.is_last, secret=secret)


def _check_device(step: Step) -> None:
    if not step.is_link and not step.is_on_new_device:
        return
    device = find_device(step.found.st_dev)
    if device is None:
        return
    if step.is_link and device.kind == "proc":
        problem = "it is a link to what a process has open, and leads elsewhere than it says"
        raise Untrusted(step.path, problem, "give the path of the file itself")
    server = device.server
    if server is not None and server not in (0, os.geteuid()) and not is_unmapped(server):
        problem = f"{account_name(server)} serves the file system that is mounted there"
        raise Untrusted(step.path, problem, "choose a folder on another", is_anothers=True)


def _check(path: Path, found: os.stat_result, *, is_last: bool, secret: bool) -> None:
    me = os.geteuid()
    quoted = shlex.quote(str(path))
    if found.st_uid not in (0, me) and (is_last or not is_unmapped(found.st_uid)):
        owner, own = account_name(found.st_uid), account_name(me)
        few = own if me == 0 else f"{own} and root"
        remedy = f"choose {'one' if is_last else 'a folder'} that only {few} can change"
        raise Untrusted(path, f"it belongs to {owner}, and this process runs as {own}", remedy, is_anothers=True)
    if stat.S_ISLNK(found.st_mode):  # it has no mode of its own (symlink(7))
        return
    if is_last or not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        remedy = f"run `chmod go-w {quoted}`"
        if found.st_mode & _OTHERS_WRITE:
            raise Untrusted(path, "every account may write to it", remedy)
        if found.st_mode & _GROUP_WRITE and not _is_private(path, found.st_gid):
            raise Untrusted(path, f"the group {_group_name(found.st_gid)} may write to it", remedy)
    if is_last and secret:
        readers = 0o007 if found.st_uid != me else 0o077
        if found.st_mode & readers:
            raise Untrusted(path, "it is secret, and other accounts may read it", f"run `chmod go= {quoted}`")


def _is_private(path: Path, gid: int) -> bool:
    """Return whether root and this account are the only members of a path's group.

    A group without a name is private if this process is in it, as in a container that was given a number.
    """
    with contextlib.suppress(OSError):  # a file system without extended attributes
        if _ACL in os.listxattr(path):  # then the group's bits are for everybody whom the list names (acl(5))
            return False
    trusted = {0, os.geteuid()}
    members = {account.pw_uid for account in pwd.getpwall() if account.pw_gid == gid}
    try:
        names = grp.getgrgid(gid).gr_mem
    except KeyError:
        return gid in (os.getegid(), *os.getgroups()) and members <= trusted
    for name in names:
        try:
            members.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            return False
    # Where accounts cannot be listed, a group may seem to have no members.
    return bool(members) and members <= trusted


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def is_unmapped(uid: int) -> bool:
    """Return whether a number stands for all accounts that a user namespace does not have (user_namespaces(7))."""
    overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    return uid == overflow and Path("/proc/self/uid_map").read_text().split() != _ALL_UIDS


def _home() -> Path | None:
    """Return the home directory of this account, whatever HOME says."""
    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir).resolve()
    except (KeyError, OSError):
        return None
