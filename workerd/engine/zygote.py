"""The zygote: a small single-threaded process that forks a supervisor for each job.

Forking is safe and cheap here and nowhere else: no thread, no event loop, no gRPC, nothing but what a supervisor needs.
A request is one message on a socket pair (unix(7), SOCK_SEQPACKET): the job's id, and the descriptors of its folder, of
its lock and of the socket for the answer (`workerd.engine.reply`). The zygote ends when the daemon does; its
supervisors live on.
"""

import contextlib
import gc
import os
import socket
import sys

from workerd.engine import linux, signals, supervisor
from workerd.engine.account import own_account
from workerd.engine.errors import ResourcesExhausted
from workerd.engine.reply import encode_failure

_MAX_ID = 64
_DESCRIPTORS = 3


def serve(requests: socket.socket) -> None:
    """Fork a supervisor for each request until the other side of the socket is closed."""
    signals.set_for_zygote()
    linux.set_process_name("workerd-zygote")
    own_account()  # for all supervisors
    gc.disable()
    gc.freeze()  # what exists now stays shared with every supervisor
    while True:
        job_id, descriptors, flags, _ = socket.recv_fds(requests, _MAX_ID, _DESCRIPTORS)
        if not job_id:
            return
        if len(descriptors) != _DESCRIPTORS or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise RuntimeError(f"a request of {len(job_id)} bytes with {len(descriptors)} descriptors is no request")
        directory, lock, reply = descriptors
        for descriptor in descriptors:  # recv_fds() of Python 3.11 passes no MSG_CMSG_CLOEXEC on
            os.set_inheritable(descriptor, False)
        try:
            pid = os.fork()
        except OSError as error:  # no process, no memory: for this job, not for the zygote
            problem = f"no process for it: {error.strerror}"
            with contextlib.suppress(BrokenPipeError):
                os.write(reply, encode_failure(ResourcesExhausted("a supervisor", problem)))
        else:
            if pid == 0:
                requests.close()
                _become_supervisor(job_id.decode(), directory, lock, reply)
        for descriptor in descriptors:
            os.close(descriptor)


def _become_supervisor(job_id: str, directory: int, lock: int, reply: int) -> None:
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):  # the daemon's terminal or log must not be held open by a job
            os.dup2(null, standard)
        os.close(null)
        signals.set_for_supervisor()
        linux.set_process_name("workerd-job")
        supervisor.main(job_id, directory, lock, reply)
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    if "hidden" in sys.argv[2:]:  # its supervisors hold what jobs were given in secret
        linux.hide_memory()
    serve(socket.socket(fileno=int(sys.argv[1])))
