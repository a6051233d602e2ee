"""The one door to the kernel calls that the standard library lacks (prctl(2), capset(2), fallocate(2), keyctl(2)).

The packages that wrap them have had no release for years; a few calls through ctypes need less than a dependency.
"""

import ctypes
import errno
import os
import signal
import struct

_PR_SET_PDEATHSIG = 1  # PR_SET_PDEATHSIG(2const)
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4  # PR_SET_DUMPABLE(2const)
_PR_SET_NAME = 15  # PR_SET_NAME(2const)
_PR_SET_CHILD_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER(2const)
_PR_SET_NO_NEW_PRIVS = 38  # PR_SET_NO_NEW_PRIVS(2const)
_PR_CAP_AMBIENT = 47  # PR_CAP_AMBIENT(2const)
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522  # capget(2), linux/capability.h
_CAPABILITY_HEADER = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
_CAPABILITIES = struct.Struct("=6I")  # effective, permitted, inheritable: the low 32 bits, then the high ones
_CapabilityData = ctypes.c_char * _CAPABILITIES.size
_KEYCTL_JOIN_SESSION_KEYRING = 1  # KEYCTL_JOIN_SESSION_KEYRING(2const)
_KEYCTL = {  # the call's number, by architecture and size of a pointer: the C library has no function for it
    ("x86_64", 8): 250,
    ("aarch64", 8): 219,
    ("riscv64", 8): 219,
    ("ppc64le", 8): 271,
    ("s390x", 8): 280,
    ("i686", 4): 288,
    ("armv7l", 4): 311,
}
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # fallocate(2), linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_capget, _capset = _libc.capget, _libc.capset  # looked up once, and not in every process that is forked
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, argument: int | bytes) -> None:
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    none = ctypes.c_ulong(0)
    _check(_libc.prctl(option, value, none, none, none), f"prctl({option})")


def set_parent_death_signal(number: signal.Signals) -> None:
    """Have the kernel signal this process when its parent dies. Kept across execve(2) of ordinary programs.

    Undone when the process takes on other credentials (PR_SET_PDEATHSIG(2const)).
    """
    _prctl(_PR_SET_PDEATHSIG, number)


def hide_memory() -> None:
    """Keep other programs of this account from tracing this process, and from reading its memory and environment.

    Most of its files in /proc belong to root from now on, and it leaves no core dump. Children inherit this, and lose
    it when they execute a program (PR_SET_DUMPABLE(2const)).
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def show_memory() -> None:
    """Undo `hide_memory`."""
    _prctl(_PR_SET_DUMPABLE, 1)


def is_memory_hidden() -> bool:
    """Return whether `hide_memory` is in effect for this process."""
    return bool(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0)


def become_subreaper() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_process_name(name: str) -> None:
    """Set the name that ps and top show, cut to 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode())


def renounce_new_privileges() -> None:
    """Have no program that is executed from now on gain anything by its set-user-ID bit or its capabilities."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability: permitted, effective and inheritable, and ambient ones with them (capabilities(7))."""
    _set_capabilities(bytes(_CAPABILITIES.size))


def clear_inherited_capabilities() -> None:
    """Clear the ambient and the inheritable set, so that no program has a capability by inheritance (capabilities(7)).

    What is executed as root, or has capabilities as a file, gets those of the bounding set as always.
    """
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    data = _CapabilityData()
    _check(_capget(_CAPABILITY_HEADER, data), "capget")
    effective, permitted, _, high_effective, high_permitted, _ = _CAPABILITIES.unpack(data)
    _set_capabilities(_CAPABILITIES.pack(effective, permitted, 0, high_effective, high_permitted, 0))


def _set_capabilities(data: bytes) -> None:
    _check(_capset(_CAPABILITY_HEADER, data), "capset")


def join_new_session_keyring() -> None:
    """Replace this process's session keyring by a new one without keys (session-keyring(7)).

    The keyring counts towards the quota of this process's account, also when the process takes on another account.

    Raises:
        OSError: ENOSYS if the kernel has no keyrings, or this is an architecture whose number of the call is not known;
            EPERM if a filter (seccomp(2)) denies it; EDQUOT if the account has too many keys (keyrings(7)).
    """
    if (call := _KEYCTL.get((os.uname().machine, ctypes.sizeof(ctypes.c_void_p)))) is None:
        raise OSError(errno.ENOSYS, f"keyctl: {os.strerror(errno.ENOSYS)}")
    joined = _syscall(ctypes.c_long(call), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), ctypes.c_void_p(None))
    _check(0 if joined >= 0 else -1, "keyctl(KEYCTL_JOIN_SESSION_KEYRING)")


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Give a range of a file back to the file system; it reads as zeros from then on, and the file's size stays.

    Raises:
        OSError: EOPNOTSUPP where the file system cannot do this.
    """
    _fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def set_room_aside(descriptor: int, offset: int, length: int) -> None:
    """Take room on the disk for a range of a file; the file's size and what can be read of it stay.

    Raises:
        OSError: ENOSPC where there is none, EOPNOTSUPP where the file system cannot do this.
    """
    _fallocate(descriptor, _FALLOC_FL_KEEP_SIZE, offset, length)


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, f"fallocate: {os.strerror(number)}")
