"""The state that every job starts from, whatever state the daemon was started in.

A process passes on to what it starts, among other things (fork(2), execve(2)): signal mask and dispositions, resource
limits, umask, nice value, scheduling policy, `oom_score_adj`, capabilities and session keyring. docs/workerd.md has a
table of what a job finds instead.
"""

import errno
import os
import resource

from workerd.engine import linux, signals

UMASK = 0o022
SOFT_LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 1024,  # select(2) can take no more
    resource.RLIMIT_STACK: 8 << 20,
}
"""A job's soft limits (getrlimit(2)). Every other one is as high as its hard limit, which is the daemon's."""

_OOM_SCORE_ADJ = "/proc/self/oom_score_adj"  # proc_pid_oom_score_adj(5)
_REAL_TIME = {os.SCHED_FIFO, os.SCHED_RR, 6}  # 6: SCHED_DEADLINE, which Python does not name (sched(7))
_LIMITS = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}


def assume() -> None:
    """Take on the state for a job, in the process that is about to execute its program.

    Nothing here takes a privilege, so it can be done before the process takes on the account of the job.
    """
    os.umask(UMASK)
    _give_up_precedence()
    for limit in _LIMITS:
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (_least(SOFT_LIMITS.get(limit, hard), hard), hard))
    linux.clear_inherited_capabilities()
    signals.set_for_program()


def leave_session_keyring() -> None:
    """Leave the daemon's session keyring, which would join jobs of all accounts, for a new one.

    A daemon of another account than root has jobs of that account alone, and an ordinary quota of keys: they stay.

    Raises:
        OSError: there are too many keyrings.
    """
    if os.geteuid() != 0:
        return
    try:
        linux.join_new_session_keyring()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # with these, the job cannot use the daemon's either
            raise


def _give_up_precedence() -> None:
    """Leave no precedence over ordinary processes: for the processor, and for memory when it runs out."""
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK in _REAL_TIME:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if os.getpriority(os.PRIO_PROCESS, 0) < 0:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with open(_OOM_SCORE_ADJ, "rb", buffering=0) as file:
        spared = int(file.read()) < 0
    if spared:
        with open(_OOM_SCORE_ADJ, "wb", buffering=0) as file:
            file.write(b"0")


def _least(soft: int, hard: int) -> int:
    return soft if hard == resource.RLIM_INFINITY else hard if soft == resource.RLIM_INFINITY else min(soft, hard)
