"""The zygote: a small single-threaded process that forks a supervisor for each job.

Forking is safe and cheap here and nowhere else: no thread, no event loop, no gRPC, nothing but what a supervisor needs.
A request is one message on a socket pair (unix(7), SOCK_SEQPACKET): the path of the job's folder, and the descriptors
of its lock and of the pipe for the answer. The zygote ends when the daemon does; its supervisors live on.
"""

import gc
import os
import signal
import socket
import sys
from pathlib import Path

from workerd.engine import linux, supervisor
from workerd.engine.errors import ResourcesExhausted
from workerd.engine.reply import encode_failure

_MAX_PATH = 4096  # PATH_MAX, limits.h


def serve(requests: socket.socket) -> None:
    """Fork a supervisor for each request until the other side of the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors leave no zombies (sigaction(2), NOTES)
    linux.set_process_name("workerd-zygote")
    gc.disable()
    gc.freeze()  # what exists now stays shared with every supervisor
    while True:
        path, descriptors, flags, _ = socket.recv_fds(requests, _MAX_PATH, 2)
        if not path:
            return
        if len(descriptors) != 2 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise RuntimeError(f"a request of {len(path)} bytes with {len(descriptors)} descriptors is no request")
        lock, reply = descriptors
        for descriptor in descriptors:  # recv_fds() of Python 3.11 passes no MSG_CMSG_CLOEXEC on
            os.set_inheritable(descriptor, False)
        try:
            pid = os.fork()
        except OSError as error:  # no process, no memory: for this job, not for the zygote
            os.write(reply, encode_failure(ResourcesExhausted("a supervisor", f"no process for it: {error.strerror}")))
        else:
            if pid == 0:
                requests.close()
                _become_supervisor(Path(os.fsdecode(path)), lock, reply)
        for descriptor in descriptors:
            os.close(descriptor)


def _become_supervisor(path: Path, lock: int, reply: int) -> None:
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):  # the daemon's terminal or log must not be held open by a job
            os.dup2(null, standard)
        os.close(null)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        linux.set_process_name("workerd-job")
        supervisor.main(path, lock, reply)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
