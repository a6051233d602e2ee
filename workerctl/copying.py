"""Copying a log to this program's own streams, checked on the way."""

import contextlib
from collections.abc import AsyncGenerator, Callable

from worker_api.worker.v1 import Gap, JobEnd

from workerctl.errors import JobNotFound, JobTakenAway
from workerctl.events import LogEvent, Output
from workerctl.log import LogCheck
from workerctl.terminal import warn
from workerctl.writer import Writer


async def copy_log(
    log: AsyncGenerator[LogEvent, None], check: LogCheck, form: Callable[[LogEvent], tuple[int, bytes] | None]
) -> JobEnd | None:
    """Write a log as it comes in, and check it.

    What is not kept any more is told on standard error, in its place, and so is why a log ended before its job.

    Args:
        log: its events; closed in the end.
        check: is given each event.
        form: tells to which descriptor an event is written, and as what; None for an event that is not.

    Returns:
        The job's end; None when the log stopped before, as one does that is not followed.

    Raises:
        LogDamaged: it is not what the job wrote.
        OSError: it cannot be written (`workerctl.writer.write_all`).
        JobTakenAway: the job is not there for the caller any more.
        ClientError: it cannot be read.
    """
    begun = False
    try:
        async with Writer() as writer, contextlib.aclosing(log) as events:
            async for event in events:
                begun = True
                if isinstance(event, Output):
                    check.output(event)
                if (piece := form(event)) is not None:
                    await writer.write(*piece)
                match event:
                    case Gap():
                        await writer.flush()
                        warn(check.gap(event))
                    case JobEnd():
                        await writer.flush()
                        check.end(event)
                        if event.log_ended_early:
                            warn(event.log_ended_early)
                        return event
    except JobNotFound as answer:
        if not begun:
            raise
        raise JobTakenAway(answer) from answer
    return None
