"""The command `workerctl`."""

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import threading
from typing import NoReturn

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h; mallopt(3)
_KEPT_BYTES = 1 << 25


def main() -> NoReturn:
    """Run the command."""
    # A standard descriptor that was closed is filled, or a connection would take its place and get what is printed.
    # What is written there fails as it did, with EBADF.
    while (descriptor := os.open(os.devnull, os.O_RDONLY)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    _keep_memory()
    try:
        gc.disable()  # nothing of what is imported is garbage
        from workerctl.app import main_with  # which takes a while, and Ctrl-C may come before it can be heard there

        gc.freeze()
        gc.enable()
        code = main_with(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    _leave(code)


def _keep_memory() -> None:
    """Have malloc keep what is freed, or the kernel makes the pages of every large message anew."""
    with contextlib.suppress(AttributeError):  # a C library that is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def _leave(code: int) -> NoReturn:
    """End the process without taking the interpreter apart first, which is a sixth of a short command's time."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
