"""How results are printed: as JSON for programs, as text for people."""

import asyncio
import base64
import contextlib
import dataclasses
import enum
import errno
import json
import os
import queue
import select
import shlex
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self

import betterproto2
from worker_api.worker.v1 import Exited, Gap, Job, JobEnd, Killed, Lost, Stopped, TimedOut, User

from workerctl.events import LogEvent, Output

OutputFormat = Literal["text", "json"]

_LONGEST_COMMAND = 100  # characters, in a list
_MOST_OUTSTANDING = 1 << 22  # bytes
_MOST_WAITING = 1 << 16  # characters, of lines that are printed together
_SMALL_BYTES = 1 << 12  # what is cheaper to be put together than to be written by itself


def print_result(message: betterproto2.Message, text: str, output: OutputFormat) -> None:
    """Print one result, in the form that was asked for."""
    print_line(json.dumps(to_plain(message)) if output == "json" else text)


def print_job(job: Job, output: OutputFormat, *, with_envs: bool = False) -> None:
    """Print a job, in the form that was asked for."""
    print_line(json.dumps(job_to_plain(job, with_envs=with_envs)) if output == "json" else describe_job(job))


def to_plain(value: Any) -> Any:
    """Turn a message into what JSON has: names as in api.proto, enums by name, times as ISO 8601, durations in seconds.

    Bytes become hexadecimal. Fields that are absent are left out.
    """
    match value:
        case betterproto2.Message():
            fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))  # type: ignore[arg-type]
            return {name: to_plain(content) for name, content in fields if content is not None}
        case enum.IntEnum():
            return (value.name or str(int(value))).lower()
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case list():
            return [to_plain(item) for item in value]
        case dict():
            return {name: to_plain(content) for name, content in value.items()}
        case _:
            return value


def job_to_plain(job: Job, *, with_envs: bool = False) -> dict[str, Any]:
    """Turn a job into what JSON has; with its environment variables only if they were asked for."""
    plain: dict[str, Any] = to_plain(job)
    if not with_envs:
        del plain["envs"]
    return plain


def event_to_plain(event: LogEvent) -> dict[str, Any]:
    """Turn an event of a log into one flat JSON object.

    The bytes of an output event are `text` where they are UTF-8, and otherwise `data_base64`.
    """
    match event:
        case Output(data=data):
            try:
                content = {"text": data.decode()}
            except UnicodeDecodeError:
                content = {"data_base64": base64.b64encode(data).decode()}
            return {
                "event": "output",
                "offset_bytes": event.offset_bytes,
                "stream": to_plain(event.stream),
                "time_unix_nano": event.time_unix_nano,
                "stream_offset_bytes": event.stream_offset_bytes,
                **content,
            }
        case Gap():
            return {"event": "gap", **to_plain(event)}
        case JobEnd():
            return {"event": "end", **to_plain(event)}


def describe_job(job: Job) -> str:
    """Describe a job for people, one line for each thing."""
    lines = {
        "id": job.id,
        "name": job.name,
        "owner": job.owner.name if job.owner else "",
        "spawned by": job.spawned_by.name if job.spawned_by else "",
        "runs as": job.run_as,
        "program": job.program,
        "arguments": " ".join(map(shlex.quote, job.args)),
        "directory": job.working_directory,
        "state": to_plain(job.state) + (", held up: the daemon's disk is full" if job.waits_for_room else ""),
        "incomplete": job.log_ended_early,
        "created": format_time(job.created_at),
        "started": format_time(job.started_at),
        "pid": str(job.pid or ""),
        "stdout": f"{job.stdout_bytes} bytes",
        "stderr": f"{job.stderr_bytes} bytes",
        "kept": f"from byte {job.kept_from_offset_bytes} of the output on" if job.kept_from_offset_bytes else "",
        "timeout": f"{job.timeout.total_seconds():g} s" if job.timeout else "",
    }
    if job.end is not None:
        lines["ended"] = f"{format_time(job.end.ended_at)}, {describe_end(job.end)}"
        if job.end.lost is None:  # of a lost job nobody knows what it used
            cpu = sum((time.total_seconds() for time in (job.end.user_cpu_time, job.end.system_cpu_time) if time), 0.0)
            lines["used"] = f"{cpu:.3f} s of processor time, {job.end.peak_memory_bytes / 2**20:.1f} MiB at most"
    variables = (_line("variable", f"{name}={value}") for name, value in sorted(job.envs.items()))
    return "\n".join((format_lines(lines), *variables))


def describe_end(end: JobEnd) -> str:
    """Describe in a few words how a job ended."""
    match end:
        case JobEnd(exited=Exited(code=code)):
            return f"exited with code {code}"
        case JobEnd(killed=Killed(signal=signal)):
            return f"killed by signal {signal}"
        case JobEnd(stopped=Stopped(by=User(name=name), signal=signal)):
            return f"stopped by {name} with signal {signal}"
        case JobEnd(timed_out=TimedOut(timeout=timedelta() as timeout, signal=signal)):
            return f"timed out after {timeout.total_seconds():g} s, stopped with signal {signal}"
        case JobEnd(lost=Lost(detail=detail)):
            return f"lost: {detail}"
        case _:
            return "ended in a way that this workerctl does not know: update it"


def describe_jobs(jobs: Iterable[Job], *, with_owners: bool = False) -> str:
    """Describe jobs for people, one line for each."""
    rows: list[tuple[str, ...]] = [("ID", *(["OWNER"] if with_owners else []), "CREATED", "STATE", "NAME", "PROGRAM")]
    for job in jobs:
        state = describe_end(job.end) if job.end is not None else to_plain(job.state)
        program = job.damage or " ".join((job.program, *map(shlex.quote, job.args)))
        owner = [(job.owner.name if job.owner else "") or "?"] if with_owners else []
        created = format_time(job.created_at)
        rows.append((job.id, *owner, created, state, job.name or "-", _cut(_one_line(program))))
    return format_table(rows)


def format_lines(lines: Mapping[str, str]) -> str:
    """Put what a thing is called before each thing, one on a line; what is empty is left out."""
    return "\n".join(_line(label, text) for label, text in lines.items() if text)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Put rows of as many cells each below each other; the last column is as wide as it comes."""
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    return "\n".join("  ".join((*map(str.ljust, row, widths), row[-1])).rstrip() for row in rows)


def format_time(time: datetime | None) -> str:
    """Write a time as people here have it; nothing for none."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def write_all(descriptor: int, data: bytes) -> None:
    """Write bytes as they are, without a buffer of our own.

    Raises:
        BrokenPipeError: whoever read them has gone, or the descriptor was closed from the beginning.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # somebody made it non-blocking: wait until it takes more
            writable = select.poll()
            writable.register(descriptor, select.POLLOUT)
            writable.poll()
        except OSError as error:
            if error.errno == errno.EBADF:
                raise BrokenPipeError(errno.EPIPE, "the output is closed") from error
            raise


class Writer:
    """Writes in a thread of its own, so that a terminal or a pager that takes nothing stops nothing but the output.

    Ctrl-C must be heard meanwhile, and the daemon's PINGs be answered. An asynchronous context manager: it is left when
    everything is written, but for a cancellation, which waits for nothing. The thread is not waited for at the end of
    the program (`threading.Thread.daemon`): it may be stuck for ever.
    """

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[list[tuple[int, list[bytes]]]] = queue.SimpleQueue()
        self._collected: list[tuple[int, list[bytes]]] = []
        self._outstanding = 0  # bytes, collected and ordered
        self._progress = asyncio.Event()
        self._problem: OSError | None = None
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, name="writer", daemon=True).start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, asyncio.CancelledError | OSError):
            await self.flush()

    async def write(self, descriptor: int, data: bytes) -> None:
        """Write bytes as they are, soon: return at once, or when not too much is outstanding any more.

        Raises:
            OSError: as `write_all`, for what was to be written before.
        """
        if not self._collected:
            self._loop.call_soon(self._order)  # whatever comes before the loop's next turn goes together
        if len(data) < _SMALL_BYTES and self._collected and self._collected[-1][0] == descriptor:
            self._collected[-1][1].append(data)
        else:
            self._collected.append((descriptor, [data]))
        self._outstanding += len(data)
        await self._wait(_MOST_OUTSTANDING)

    async def flush(self) -> None:
        """Return when everything is written.

        Raises:
            OSError: as `write_all`.
        """
        await self._wait(0)

    async def _wait(self, most: int) -> None:
        while self._outstanding > most and self._problem is None:
            self._progress.clear()
            await self._progress.wait()
        if self._problem is not None:
            raise self._problem

    def _order(self) -> None:
        self._orders.put(self._collected)
        self._collected = []

    def _work(self) -> None:
        while True:
            order = self._orders.get()
            problem: OSError | None = None
            try:
                for descriptor, pieces in order:
                    write_all(descriptor, pieces[0] if len(pieces) == 1 else b"".join(pieces))
            except OSError as error:
                problem = error
            written = sum(len(piece) for _, pieces in order for piece in pieces)
            with contextlib.suppress(RuntimeError):  # the loop was left meanwhile
                self._loop.call_soon_threadsafe(self._settle, written, problem)
            if problem is not None:
                return

    def _settle(self, written: int, problem: OSError | None) -> None:
        self._outstanding -= written
        self._problem = problem
        self._progress.set()


def print_line(line: str) -> None:
    """Print a line at once.

    Raises:
        BrokenPipeError: nobody reads it.
        OSError: it cannot be written, for another reason.
    """
    print_lines([line])


def print_lines(lines: Iterable[str]) -> None:
    """Print any number of lines, many at a time.

    Raises:
        BrokenPipeError, OSError: as `print_line`.
    """
    waiting: list[str] = []
    waiting_characters = 0
    for line in lines:
        waiting.append(line)
        waiting_characters += len(line)
        if waiting_characters > _MOST_WAITING:
            _print(waiting)
            waiting, waiting_characters = [], 0
    _print(waiting)


def _print(lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    try:
        write_all(1, text.encode(sys.stdout.encoding if sys.stdout else "utf-8", "backslashreplace"))
    except OSError as error:
        error.filename = "standard output"
        raise


def _line(label: str, text: str) -> str:
    return f"{label + ':':<12}{_one_line(text)}"


def _one_line(text: str) -> str:
    """Escape what would break the line or reach the terminal as a command."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 1] + "…"
