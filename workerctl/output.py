"""How results are printed: as JSON for programs, as text for people."""

import base64
import dataclasses
import enum
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import betterproto2
from worker_api.worker.v1 import Exited, Gap, Job, JobEnd, Killed, Lost, Stopped, TimedOut, User

from workerctl.events import LogEvent, Output
from workerctl.terminal import escape, print_line, print_lines

OutputFormat = Literal["text", "json"]

_LONGEST_COMMAND = 100  # characters, in a list


def print_result(message: betterproto2.Message, lines: str | Iterable[str], output: OutputFormat) -> None:
    """Print one result, in the form that was asked for.

    Args:
        message: the result.
        lines: the same for people; a text is one line.
    """
    if output == "json":
        print_line(json.dumps(to_plain(message)))
    else:
        print_lines([lines] if isinstance(lines, str) else lines)


def print_job(job: Job, output: OutputFormat, *, with_envs: bool = False) -> None:
    """Print a job, in the form that was asked for."""
    print_lines([json.dumps(job_to_plain(job, with_envs=with_envs))] if output == "json" else describe_job(job))


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


def describe_job(job: Job) -> list[str]:
    """Describe a job for people, one line for each thing."""
    lines = {
        "id": job.id,
        "name": job.name,
        "owner": job.owner.name if job.owner else "",
        "spawned by": job.spawned_by.name if job.spawned_by else "",
        "runs as": job.run_as,
        "program": job.program,
        "arguments": " ".join(
            (*map(shlex.quote, job.args), *(["… (`workerctl status` shows all)"] if job.args_cut else ()))
        ),
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
            peak = job.end.peak_memory_bytes
            memory = f", {peak / 2**20:.1f} MiB at most" if peak else ""  # of small programs it is not known
            lines["used"] = f"{cpu:.3f} s of processor time{memory}"
    variables = (_line("variable", f"{name}={value}") for name, value in sorted(job.envs.items()))
    return [*format_lines(lines), *variables]


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


def describe_jobs(jobs: Iterable[Job], *, with_owners: bool = False) -> list[str]:
    """Describe jobs for people, one line for each."""
    rows: list[tuple[str, ...]] = [("ID", *(["OWNER"] if with_owners else []), "CREATED", "STATE", "NAME", "PROGRAM")]
    for job in jobs:
        state = describe_end(job.end) if job.end is not None else to_plain(job.state)
        program = job.damage or " ".join((job.program, *map(shlex.quote, job.args), *("…" if job.args_cut else "")))
        owner = [(job.owner.name if job.owner else "") or "?"] if with_owners else []
        created = format_time(job.created_at)
        rows.append((job.id, *owner, created, state, job.name or "-", _cut(escape(program))))
    return format_table(rows)


def format_lines(lines: Mapping[str, str]) -> list[str]:
    """Put what a thing is called before each thing, one on a line; what is empty is left out."""
    return [_line(label, text) for label, text in lines.items() if text]


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Put rows of as many cells each below each other; the last column is as wide as it comes."""
    rows = [[escape(cell) for cell in row] for row in rows]  # as they are printed, for the widths
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    return ["  ".join((*map(str.ljust, row, widths), row[-1])).rstrip() for row in rows]


def format_time(time: datetime | None) -> str:
    """Write a time as people here have it; nothing for none."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _line(label: str, text: str) -> str:
    return f"{label + ':':<12}{text}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_COMMAND else text[: _LONGEST_COMMAND - 1] + "…"
