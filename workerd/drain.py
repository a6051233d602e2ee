"""Draining from outside: asking the daemon of a state directory to take no new jobs, and waiting until it has ended.

What is asked with is a file, whose meaning `workerd.engine.keeper` tells.
"""

import contextlib
import os
import select
import shlex
import sys
from pathlib import Path

import asyncinotify

from system import pidfd
from system.holder import holding_process
from system.ownership import require_trusted
from workerd.engine.files import private
from workerd.engine.shelf import Shelf
from workerd.errors import DrainFailed
from workerd.listening import is_advertised

INTERRUPTED = 130  # what a shell makes of SIGINT
_END_SECONDS = 30.0
_DRAINED_SECONDS = 90.0  # the last readers have 30, API processes 20 more


def drain(state_directory: Path) -> int:
    """Drain the daemon of a state directory, say on standard error how it goes, and return the exit code.

    Raises:
        DrainFailed: there is no daemon, or it ended, or went on, with jobs left.
        Untrusted: other accounts can change the state directory.
    """
    require_trusted(state_directory)
    shelf = Shelf(state_directory)
    marker = shelf.drain
    require_trusted(shelf.lock)
    with holding_process(shelf.lock) as daemon:
        if daemon is None:
            raise DrainFailed(f"no workerd serves the state directory {state_directory}")
        progress = private(os.fspath(marker), os.O_RDONLY | os.O_CREAT)
        try:
            left = _wait(daemon.handle, marker, progress)
            # A daemon that ends withdraws its endpoint before it removes the file. One that goes on still has it.
            ended = daemon.wait_ended(0.0)
            if not ended and (left == "0" or not is_advertised(state_directory)):
                ended = daemon.wait_ended(_DRAINED_SECONDS if left == "0" else _END_SECONDS)
        except KeyboardInterrupt:
            again = shlex.join(["workerd", "--drain", "--state-dir", str(state_directory)])
            _say(f"the daemon goes on draining: `{again}` waits again, `rm {shlex.quote(str(marker))}` calls it off")
            return INTERRUPTED
        finally:
            os.close(progress)
    if left == "0":
        if not ended:
            problem = f"the daemon (process {daemon.pid}) has not ended within {_DRAINED_SECONDS:g} s"
            raise DrainFailed(f"no job is left, but {problem}: `kill -9 {daemon.pid}` ends it")
        return 0
    marker.unlink(missing_ok=True)  # a daemon that was killed leaves it
    raise DrainFailed(f"the daemon {'ended' if ended else 'goes on: the drain was called off'} with {_jobs(left)}")


def _wait(daemon: int, marker: Path, progress: int) -> str:
    """Wait until the daemon ends, or takes the file away; return how many jobs were left, as it last said."""
    said = ""
    with asyncinotify.Inotify(sync_timeout=0) as news:
        # ATTRIB: an open file is only said to be deleted when it is closed, but has a link less at once (inotify(7)).
        # Of a file that is gone already nothing is told, and nothing needs to be.
        with contextlib.suppress(FileNotFoundError):
            news.add_watch(marker, asyncinotify.Mask.MODIFY | asyncinotify.Mask.ATTRIB)
        while True:
            over = not os.fstat(progress).st_nlink or pidfd.has_ended(daemon)
            left = os.pread(progress, 32, 0).decode().strip()
            if left != said:
                _say("no job is left; the daemon ends" if left == "0" else f"waiting for {_jobs(left)}")
                said = left
            if over:
                return left
            select.select([daemon, news.fd], [], [])
            while news.sync_get() is not None:
                pass


def _jobs(left: str) -> str:
    return f"{left or '?'} {'job' if left == '1' else 'jobs'} left"


def _say(text: str) -> None:
    print(f"workerd: {text}", file=sys.stderr, flush=True)  # noqa: T201
