"""The signals of what tests start, whatever the tests themselves were started with: nohup(1), or `&` in a script."""

import signal

_IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def restore_for_children() -> None:
    """Have no signal blocked or ignored in what this process executes.

    A signal that this process was started with as ignored gets a handler that does nothing: that has the same effect
    here, and is reset in what is executed (execve(2)).
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL if number is signal.SIGCHLD else _do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _do_nothing(*_: object) -> None: ...


def read_mask(text: str | bytes) -> int:
    """Read a set of signals, as proc_pid_status(5) has it, without those that the C library keeps for itself."""
    return int(text, 16) & sum(1 << (number - 1) for number in signal.valid_signals())
