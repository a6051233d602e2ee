"""System accounts: looking one up, and becoming one for good."""

import contextlib
import functools
import os
import pwd

from workerd.engine import linux
from workerd.engine.errors import AccountUnusable
from workerd.engine.job import Account


def own_name() -> str:
    """Return the name of the daemon's account."""
    return own_account().name


@functools.cache
def own_account() -> Account:
    """Look up the daemon's account; one without an entry, as in some containers, is called by its number.

    The result is cached, because a service that the C library asks (nsswitch.conf(5)) may hang later.
    """
    uid = os.geteuid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        entry = pwd.struct_passwd((str(uid), "x", uid, os.getegid(), "", "/", "/bin/sh"))
    return _account(entry)


def find_account(name: str) -> Account | None:
    """Look up the account that a job is to run as. May take its time, where accounts are kept on another machine.

    Returns:
        None when it is the daemon's own: there is nothing to become then.

    Raises:
        AccountUnusable: there is no such account, or the daemon may not take it on.
    """
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        problem = "the daemon's machine has no such account: `getent passwd` lists there those that it has"
        raise AccountUnusable(name, problem) from None
    if entry.pw_name != name:  # where names are looked up loosely: what was decided on is the name that was given
        raise AccountUnusable(name, f"its name on the daemon's machine is {entry.pw_name}: give that")
    with contextlib.suppress(KeyError):
        if (first := pwd.getpwuid(entry.pw_uid).pw_name) != name:  # otherwise a policy could be evaded by a second name
            raise AccountUnusable(name, f"it is the account {first} on the daemon's machine: give that name")
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        problem = f"the daemon runs as {own_account().name}, and only root may take on another account: name none"
        raise AccountUnusable(name, problem)
    return _account(entry, tuple(sorted(set(os.getgrouplist(entry.pw_name, entry.pw_gid)))))


def become(account: Account) -> None:
    """Take on an account, with its groups and without any capability, so that there is no way back.

    Nothing that is executed later gains anything either. What the kernel was to do at the parent's death is undone.

    Raises:
        OSError: the kernel does not let this process do so.
    """
    os.setgroups(account.groups)  # in this order: each step takes what the next gives up
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    linux.drop_capabilities()  # which a daemon with unusual securebits would have kept (capabilities(7))
    linux.renounce_new_privileges()
    taken = os.getresuid(), os.getresgid(), tuple(sorted(os.getgroups()))
    if taken != ((account.uid,) * 3, (account.gid,) * 3, account.groups):
        raise AssertionError(f"this process runs as {taken} instead of {account}")


def _account(entry: pwd.struct_passwd, groups: tuple[int, ...] = ()) -> Account:
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=groups,
        home=entry.pw_dir,
        shell=entry.pw_shell or "/bin/sh",
    )
