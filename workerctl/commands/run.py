"""run: start a program, see its output, and end as it does."""

import asyncio
import signal
from datetime import timedelta
from types import TracebackType
from typing import Annotated, Self

from cyclopts import Parameter
from worker_api.worker.v1 import Exited, JobEnd, Killed, Lost, Stopped, Stream, TimedOut

from pki.errors import PkiError
from workerctl.client import Client
from workerctl.context import Context
from workerctl.copying import copy_log
from workerctl.errors import ClientError, sentence
from workerctl.events import LogEvent, Output
from workerctl.exit_codes import ExitCode, of_signal
from workerctl.log import LogCheck
from workerctl.output import describe_end
from workerctl.parameters import CommandLine, Injected
from workerctl.spawning import JobOptions, print_started
from workerctl.terminal import warn
from workerctl.writer import is_open

_LEAVING = (signal.SIGTERM, signal.SIGHUP)
_DESCRIPTORS = {Stream.STDOUT: 1, Stream.STDERR: 2}


async def run(
    *command: CommandLine,
    options: JobOptions = JobOptions(),
    detach: Annotated[bool, Parameter(negative=(), show_default=False, help="Print the job's id and leave.")] = False,
    context: Injected,
) -> int:
    """Start a program, stream its output, and exit as it did: its code, or 128 + N when signal N killed it.

    Ctrl-C stops the job, a second one kills it. What the program leaves running when it ends is killed. The job does
    not need this command: it runs on when the connection or the terminal goes away. The job has no standard input.

    Example: `workerctl run -- /bin/sh -c 'echo out; echo err >&2; exit 3'`
    """
    request = options.request(command)
    async with context.client() as client:
        if detach:
            job_id = await client.spawn(request)
            print_started(job_id, job_id)
            return ExitCode.OK
        async with Interrupts(client, context) as interrupts:
            job_id = await client.spawn(request)
            interrupts.started(job_id)
            try:
                check = LogCheck(_DESCRIPTORS, from_start=True)
                end = await copy_log(client.stream_log(job_id), check, _as_printed)
            except BrokenPipeError:
                warn(f"nobody reads the output any more; job {job_id} runs on; {_go_on(context, job_id)}")
                return ExitCode.OUTPUT_CLOSED
            except (ClientError, OSError) as error:
                error.add_note(_go_on(context, job_id))
                raise
    if end is None:
        raise AssertionError("a log that was followed stopped before its end")
    return ExitCode.INTERRUPTED if interrupts.count else _exit_code_of(end)


def _as_printed(event: LogEvent) -> tuple[int, bytes] | None:
    if not isinstance(event, Output) or (event.stream is Stream.STDERR and not is_open(2)):
        return None  # what a program prints to a standard error that was closed is lost, and the program goes on
    return _DESCRIPTORS[event.stream], event.data


def _go_on(context: Context, job_id: str) -> str:
    return f"go on with: {context.command('stream-log', '--past-events', '--uuid', job_id)}"


def _exit_code_of(end: JobEnd) -> int:
    """Return what `run` exits with for a job that ended so; what the code alone does not say is told to the user."""
    match end:
        case JobEnd(exited=Exited(code=code), log_ended_early=""):
            return code
    warn(f"job {describe_end(end)}")
    if end.log_ended_early:
        return ExitCode.LOG_DAMAGED
    match end:
        case JobEnd(killed=Killed(signal=number)) | JobEnd(stopped=Stopped(signal=number)):
            return of_signal(number)
        case JobEnd(timed_out=TimedOut()):
            return ExitCode.TIMED_OUT
        case JobEnd(lost=Lost()):
            return ExitCode.JOB_LOST
        case _:
            return ExitCode.FAILED


class Interrupts:
    """Turns the first Ctrl-C into a stop of the job and every further one into a kill, while the output goes on.

    SIGTERM and SIGHUP end the command as they do without it, once the user has been told which job runs on.

    Attributes:
        count: how often Ctrl-C was pressed.
    """

    def __init__(self, client: Client, context: Context) -> None:
        self.count = 0
        self._client = client
        self._context = context
        self._job_id: str | None = None
        self._stops: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._command = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, *_LEAVING):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup(1), or in the background of a script
                loop.add_signal_handler(number, self._take, number)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in (signal.SIGINT, *_LEAVING):
            asyncio.get_running_loop().remove_signal_handler(number)
        if kind is not None:  # the daemon may be away: what it has not heard by now it is not told any more
            for stop in self._stops:
                stop.cancel()
        if self._stops:
            await asyncio.wait(self._stops)

    def started(self, job_id: str) -> None:
        """Take in which job is meant; a Ctrl-C that came before is not forgotten."""
        self._job_id = job_id
        if self.count:
            self._stop()

    def _take(self, number: signal.Signals) -> None:
        if number is signal.SIGINT:
            self._interrupt()
        else:
            self._leave(number)

    def _interrupt(self) -> None:
        self.count += 1
        if self._job_id is None and self.count == 1:
            warn("stopping the job as soon as the daemon has started it; Ctrl-C again to leave without knowing")
        elif self._job_id is not None and not (self._client.away and self.count > 1):
            self._stop()
        elif self._command is not None:
            if self._job_id is not None:
                stop = self._context.command("stop", "--uuid", self._job_id)
                warn(f"the daemon is away; if job {self._job_id} runs on: {stop}")
            self._command.cancel()

    def _leave(self, number: signal.Signals) -> None:
        if self._job_id is None:
            warn(f"leaving without knowing whether the job was started: see {self._context.command('list')}")
        else:
            warn(f"job {self._job_id} runs on; {_go_on(self._context, self._job_id)}")
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.raise_signal(number)

    def _stop(self) -> None:
        first = not self._stops
        if self._client.away:
            warn("stopping the job as soon as the daemon is back; Ctrl-C again to leave without")
        else:
            warn("stopping the job; Ctrl-C again to kill it" if first else "killing the job")
        self._stops.append(asyncio.create_task(self._send_stop(None if first else timedelta(0))))

    async def _send_stop(self, grace: timedelta | None) -> None:
        try:
            await self._client.stop(self._job_id or "", grace)
        except (ClientError, PkiError, OSError) as error:
            warn(f"could not stop the job: {sentence(error)}")
