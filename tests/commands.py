"""Running workerctl as often as tests do: each time a process of its own, forked off one that has imported it.

Most of a short command's time goes into starting Python and importing. All else is as `python -m workerctl` has it:
arguments, environment, folder, umask, standard streams, exit code. Only what Python takes from the environment when it
starts, such as PYTHONPATH, is that of the tests. Tests of that, and of how a command starts, begin one themselves.
"""

import atexit
import functools
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import msgspec

from workerctl.__main__ import main
from workerctl.app import main_with

_DESCRIPTORS = 4
_ENVIRONMENT = dict(os.environ)  # before a test changes it
_lock = threading.Lock()


class _Order(msgspec.Struct):
    """What to run, and where; how many seconds it may take."""

    arguments: tuple[bytes, ...]
    environment: dict[bytes, bytes]
    folder: str
    umask: int
    seconds: int


def run_workerctl(
    *arguments: str, environment: dict[str, str] | None = None, seconds: int = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run workerctl to its end, with nothing to read on standard input.

    Args:
        arguments: its command line.
        environment: none for that of the tests.
        seconds: how long it may take.

    Raises:
        TimeoutExpired: it took longer, and was ended.
    """
    variables = os.environ if environment is None else environment
    order = _Order(
        tuple(map(os.fsencode, arguments)),
        {os.fsencode(name): os.fsencode(value) for name, value in variables.items()},
        os.getcwd(),
        _umask(),
        seconds,
    )
    pipes = [os.pipe() for _ in range(_DESCRIPTORS - 1)]  # of standard output, standard error, and the exit code
    with open(os.memfd_create("order"), "w+b") as file:
        file.write(msgspec.msgpack.encode(order))
        file.flush()
        with _lock:
            socket.send_fds(_server(), [b"\0"], [file.fileno(), *(theirs for _, theirs in pipes)])
    for _, theirs in pipes:
        os.close(theirs)
    with ThreadPoolExecutor(len(pipes)) as readers:
        output, errors, code = readers.map(_read_to_end, [ours for ours, _ in pipes])
    if int(code) == -signal.SIGALRM:
        raise subprocess.TimeoutExpired(["workerctl", *arguments], seconds, output, errors)
    return subprocess.CompletedProcess(["workerctl", *arguments], int(code), output, errors)


def _umask() -> int:
    """Tell the umask without setting another (proc_pid_status(5))."""
    [umask] = re.findall(r"^Umask:\s*(\d+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(umask, 8)


def _read_to_end(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


@functools.cache
def _server() -> socket.socket:
    """Start the process that has imported all of it; it ends with this one, however that comes about."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-c", f"from {__name__} import _serve; _serve({theirs.fileno()})"]
        server = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[1],
            env=_ENVIRONMENT,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def _serve(descriptor: int) -> NoReturn:
    main_with(["--help"])  # has every command imported, and what is imported late
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for a command
    with socket.socket(fileno=descriptor) as orders:
        while True:
            data, descriptors, _, _ = socket.recv_fds(orders, 1, _DESCRIPTORS)
            if not data:
                sys.exit()
            if os.fork() == 0:
                orders.close()
                _answer(*descriptors)
            for each in descriptors:
                os.close(each)


def _answer(order: int, output: int, errors: int, report: int) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(report)
        with open(order, "rb") as file:
            file.seek(0)
            wanted = msgspec.msgpack.decode(file.read(), type=_Order)
        for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (errors, 2)):
            os.dup2(descriptor, place)
            os.close(descriptor)
        _become(wanted)
    _, status = os.waitpid(child, 0)
    os.write(report, b"%d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(wanted: _Order) -> NoReturn:
    signal.alarm(wanted.seconds)
    os.umask(wanted.umask)
    os.chdir(wanted.folder)
    os.environb.clear()
    os.environb.update(wanted.environment)
    sys.argv = ["workerctl", *map(os.fsdecode, wanted.arguments)]
    main()
    raise AssertionError("workerctl did not end its process")
