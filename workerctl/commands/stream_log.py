"""stream-log: show what a job printed and prints."""

import json
from collections.abc import Collection
from typing import Annotated, Literal

from cyclopts import Parameter
from worker_api.worker.v1 import JobEnd, Stream

from workerctl.copying import copy_log
from workerctl.errors import UsageInvalid
from workerctl.events import LogEvent, Output
from workerctl.exit_codes import ExitCode
from workerctl.log import LogCheck
from workerctl.output import event_to_plain
from workerctl.parameters import Injected, Uuid
from workerctl.terminal import warn

_STREAMS = {"raw": (Stream.STDOUT, Stream.STDERR), "stdout": (Stream.STDOUT,), "stderr": (Stream.STDERR,)}


async def stream_log(
    uuid: Uuid,
    *,
    stream_type: Annotated[
        Literal["raw", "stdout", "stderr"],
        Parameter(help="The bytes of one stream as they are, or every event of both as one JSON object a line."),
    ] = "stdout",
    past_events: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="Begin at the beginning, not with what comes from now on."),
    ] = False,
    offset: Annotated[int | None, Parameter(help="Begin at this byte of the combined output.")] = None,
    last_bytes: Annotated[int | None, Parameter(help="Begin so many bytes before the end as it stands.")] = None,
    follow: Annotated[bool, Parameter(help="Whether to go on until the job ends.")] = True,
    context: Injected,
) -> int:
    """Show what a job printed and prints, complete and in order.

    At the end of a stream its size and digest are checked. A connection that breaks is taken up where it was cut.

    Example: `workerctl stream-log --past-events --uuid 123e4567-e89b-42d3-a456-426614174000`
    """
    if sum((past_events, offset is not None, last_bytes is not None)) > 1:
        raise UsageInvalid("give one of --past-events, --offset and --last-bytes")
    if min(offset or 0, last_bytes or 0) < 0:
        raise UsageInvalid("--offset and --last-bytes are numbers of bytes, zero or more")
    if past_events:
        offset = 0
    from_now_on = not past_events and offset is None and last_bytes is None
    if from_now_on and not follow:
        raise UsageInvalid("--no-follow shows what is there already: add --past-events, --offset or --last-bytes")
    if from_now_on:
        last_bytes = 0
    streams = _STREAMS[stream_type]
    check = LogCheck(streams, from_start=offset == 0)
    try:
        async with context.client() as client:
            log = client.stream_log(uuid, offset=offset or 0, last_bytes=last_bytes, streams=streams, follow=follow)
            end = await copy_log(log, check, _as_json if stream_type == "raw" else _as_printed)
    except BrokenPipeError:
        return ExitCode.OUTPUT_CLOSED
    if end is not None and from_now_on and not check.received:
        _tell_of_the_past(end, streams)
    return ExitCode.LOG_DAMAGED if end is not None and end.log_ended_early else ExitCode.OK


def _as_json(event: LogEvent) -> tuple[int, bytes]:
    return 1, json.dumps(event_to_plain(event)).encode() + b"\n"


def _as_printed(event: LogEvent) -> tuple[int, bytes] | None:
    return (1, event.data) if isinstance(event, Output) else None


def _tell_of_the_past(end: JobEnd, streams: Collection[Stream]) -> None:
    if any(summary.size_bytes for summary in end.streams if summary.stream in streams):
        warn(
            "the job has ended and printed nothing since you began to look; --past-events shows what it printed before"
        )
