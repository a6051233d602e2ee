"""Processes of other programs that hold locks, as jobs of the daemon's account may."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held_by_another(path: Path, *, stopped: bool = False) -> Iterator[int]:
    """Run another process that holds the lock on a file or a folder (flock(1)).

    Args:
        path: of the file, made if it does not exist, or of the folder.
        stopped: whether the process is stopped (SIGSTOP) once it holds the lock.

    Yields:
        The process's id.
    """
    command = ["flock", "--no-fork", "--exclusive", str(path), "sh", "-c", "echo held; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            if stopped:
                holder.send_signal(signal.SIGSTOP)
            yield holder.pid
        finally:
            holder.kill()
