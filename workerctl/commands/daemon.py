"""daemon: look after your own daemon on this machine."""

import json

from cyclopts import App

from workerctl import own_daemon
from workerctl.context import Context
from workerctl.errors import UsageInvalid
from workerctl.exit_codes import ExitCode
from workerctl.output import format_lines
from workerctl.parameters import Injected, Output
from workerctl.terminal import print_line, print_lines, warn

app = App(name="daemon", help="Look after your own daemon on this machine.")


@app.command
def status(*, output: Output = "text", context: Injected) -> int:
    """Show whether your own daemon runs, and where; exit with 1 if it does not.

    Example: `workerctl daemon status`
    """
    _require_own(context)
    with own_daemon.holder() as daemon:
        pid = None if daemon is None else daemon.pid
        endpoint = None if daemon is None else own_daemon.find()
    directory = str(own_daemon.state_directory())
    if output == "json":
        print_line(json.dumps({"running": pid is not None, "pid": pid, "endpoint": endpoint, "state_dir": directory}))
    else:
        state = "not running" if pid is None else "running" if endpoint else "starting or ending"
        lines = {"state": state, "pid": str(pid or ""), "endpoint": endpoint or "", "directory": directory}
        print_lines(format_lines(lines))
    return ExitCode.NO if pid is None else ExitCode.OK


@app.command
def stop(*, context: Injected) -> None:
    """End your own daemon and leave its jobs running. The next command that needs a daemon starts it again.

    Example: `workerctl daemon stop`
    """
    _require_own(context)
    with own_daemon.holder() as daemon:
        if daemon is None:
            warn("no daemon of your own runs")
        else:
            own_daemon.end(daemon)


@app.command
def restart(*, context: Injected) -> None:
    """End your own daemon, start it again and print its endpoint, after an update for instance. Its jobs run on.

    Example: `workerctl daemon restart`
    """
    _require_own(context)
    with own_daemon.holder() as daemon:
        if daemon is not None:
            if not own_daemon.is_started_here(daemon):
                raise UsageInvalid(
                    f"your own daemon (process {daemon.pid}) was not started by workerctl, which does not know its"
                    " options: end it with `workerctl daemon stop` and start it again as it was started"
                )
            own_daemon.end(daemon)
    print_line(own_daemon.find_or_start())


def _require_own(context: Context) -> None:
    if context.target.endpoint is not None:
        raise UsageInvalid(
            f"`daemon` is for your own daemon on this machine, and --endpoint (or WORKERCTL_ENDPOINT) is"
            f" {context.target.endpoint}: leave that out"
        )
