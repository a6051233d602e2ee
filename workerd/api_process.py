"""One of several API processes: answers calls for any job, on a port that it shares with the others.

It is started by the main process (`workerd.processes`), with what it needs to know as JSON on its standard input, which
other accounts cannot read as they can a command line, and ends when that one does, however that comes about.
"""

import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog
import uvloop

from pki.errors import PkiError
from workerd.engine import linux, signals
from workerd.engine.errors import EngineError
from workerd.errors import CannotListen, DaemonError
from workerd.listening import listen
from workerd.log import configure_log
from workerd.registry import load_routes
from workerd.server import LAST_READERS_SECONDS, answering, telling_engine
from workerd.settings import Settings
from workerd.waiting import signal_event, stop_signals, wait_first

log = structlog.get_logger()
SERVING = b"serving"
DRAINED = signal.SIGUSR1


class Orders(msgspec.Struct):
    """What the main process tells an API process.

    Attributes:
        main: the main process's id.
        report: the descriptor to report on: `SERVING` once it accepts connections, or why it cannot be, for people.
        hold: the descriptor that holds the state directory, kept open until the end.
    """

    settings: Settings
    main: int
    report: int
    hold: int

    def command(self) -> list[str]:
        """Return the command that takes these orders from its standard input."""
        # -P: whatever lies in the directory that the daemon was started in is none of its modules.
        return [sys.executable, "-P", "-m", __name__]

    def open(self) -> BinaryIO:
        """Return a file in memory that holds these orders, at its beginning (memfd_create(2))."""
        file = os.fdopen(os.memfd_create("orders"), "w+b", buffering=0)
        file.write(msgspec.json.encode(self, enc_hook=str))
        file.seek(0)
        return file


def main() -> None:
    """Be an API process."""
    signals.set_for_daemon()
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders, dec_hook=lambda _, text: Path(text))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    linux.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != orders.main:  # it had ended before the kernel was asked to tell
        return
    for descriptor in (orders.report, orders.hold):
        os.set_inheritable(descriptor, False)
    linux.set_process_name("workerd-api")
    if not orders.settings.debuggable:
        linux.hide_memory()
    configure_log()
    try:
        uvloop.run(_serve(orders))
    except (CannotListen, EngineError, OSError) as error:  # what may pass; the port is the main process's
        log.error("an API process cannot serve yet", error=str(error))
        sys.exit(1)
    except (DaemonError, PkiError) as error:
        os.write(orders.report, str(error).encode())
        sys.exit(1)


async def _serve(orders: Orders) -> None:
    routes = load_routes()
    stop, drained = stop_signals(), signal_event(DRAINED)
    async with telling_engine(orders.settings, keeps=False) as (engine, trail):
        with listen(orders.settings, shared=True) as listening:
            async with answering(engine, orders.settings, routes, listening, trail.record) as gate:
                os.write(orders.report, SERVING)
                os.close(orders.report)
                if await wait_first(stop.wait(), drained.wait()) == 1:
                    await wait_first(stop.wait(), gate.wait_idle(LAST_READERS_SECONDS))


if __name__ == "__main__":
    main()
