"""Signal masks and dispositions, which a process inherits unless it sets them (signal(7)).

A blocked or ignored SIGCHLD, for instance, hides the end of a child. So daemon and zygote set all of them when they
start, and what is forked from the zygote goes on from there. No signal is blocked, and these are ignored; every other
one has its default effect or a handler:

    daemon       SIGPIPE, SIGXFSZ; of SIGHUP, SIGINT and SIGQUIT those that it was started with as ignored (nohup(1))
    zygote       SIGPIPE, SIGXFSZ, SIGINT, SIGCHLD
    supervisor   SIGPIPE, SIGXFSZ, SIGHUP, SIGINT, SIGQUIT, SIGTERM
    program      none

SIGPIPE and SIGXFSZ report what the system call reports as well, with EPIPE or EFBIG.
"""

import contextlib
import signal

_FIXED = {signal.SIGKILL, signal.SIGSTOP}
_REPORTED_AS_ERRORS = {signal.SIGPIPE, signal.SIGXFSZ}
_FROM_TERMINAL = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}
_ZYGOTE = _REPORTED_AS_ERRORS | {signal.SIGINT, signal.SIGCHLD}
_SUPERVISOR = _REPORTED_AS_ERRORS | _FROM_TERMINAL | {signal.SIGTERM}


def set_for_daemon() -> None:
    """Set the signals of a process that serves, or that drains a daemon. SIGINT raises KeyboardInterrupt at first."""
    background = {number for number in _FROM_TERMINAL if is_ignored(number)}
    _set_all(_REPORTED_AS_ERRORS | background)
    if signal.SIGINT not in background:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def set_for_zygote() -> None:
    """Set the signals of the zygote. Its supervisors leave no zombies (sigaction(2), NOTES)."""
    _set_all(_ZYGOTE)


def set_for_supervisor() -> None:
    """Set the signals of a supervisor that the zygote has just forked. It ends when its job has ended, not before."""
    _change(_ZYGOTE, _SUPERVISOR)


def set_for_program() -> None:
    """Set the signals of a process that a supervisor has just forked, to execute a program in it."""
    _change(_SUPERVISOR, set())


def is_ignored(number: signal.Signals) -> bool:
    """Return whether this process ignores a signal, as a background process of a script does SIGINT."""
    return signal.getsignal(number) is signal.SIG_IGN


def _set_all(ignored: set[signal.Signals]) -> None:
    for number in signal.valid_signals() - _FIXED:
        # OSError: the C library keeps a few of the real-time signals for itself.
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _change(ignored_before: set[signal.Signals], ignored: set[signal.Signals]) -> None:
    """Change what differs from the process that this one was forked from: each call takes its time in every job."""
    for number in ignored_before - ignored:
        signal.signal(number, signal.SIG_DFL)
    for number in ignored - ignored_before:
        signal.signal(number, signal.SIG_IGN)
