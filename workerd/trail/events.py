"""What the audit trail is told besides decisions about calls: how jobs ended and went, and when the daemon ran.

Environment variables are no part of it.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import structlog

from workerd.engine.errors import StateDirectoryGone
from workerd.engine.job import Cause, Exited, JobEnd, JobSpec, Killed, Lost, Stopped, StreamSummary, TimedOut
from workerd.errors import AuditFailed
from workerd.trail.writer import AuditTrail

log = structlog.get_logger()


class JobEvents:
    """Tells a trail of jobs, as the engine tells it."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail

    def ended(self, spec: JobSpec, end: JobEnd) -> None:
        """Tell of a job's end.

        Raises:
            AuditFailed: that could not be done.
        """
        owner = {"id": spec.owner.id, "name": spec.owner.name}
        self._trail.record({"event": "job-ended", "job_id": spec.id, "owner": owner, "end": describe_end(end)})

    def removed(self, job_id: str) -> None:
        """Tell that a job was removed because jobs were too old or too much.

        Raises:
            AuditFailed: that could not be done.
        """
        self._trail.record({"event": "job-expired", "job_id": job_id})


def describe_end(end: JobEnd) -> dict[str, Any]:
    """Describe how and when a job ended, with the names that `api.proto` has."""
    return {
        **_describe_cause(end.cause),
        "started_at": _time(end.started_ns),
        "ended_at": _time(end.ended_ns),
        "streams": [_summary("stdout", end.stdout), _summary("stderr", end.stderr)],
        **({"log_ended_early": end.log_ended_early} if end.log_ended_early else {}),
    }


@contextlib.contextmanager
def noting_service(trail: AuditTrail, processes: int) -> Iterator[None]:
    """Tell the trail that the daemon runs, and at the end that it does so no more.

    The daemon runs even where that cannot be told: it turns calls away until it can, and its jobs run on.
    """
    _try_to_record(
        trail, {"event": "daemon-started", "version": version("workerd"), "pid": os.getpid(), "processes": processes}
    )
    has_trail = True
    try:
        yield
    except StateDirectoryGone:
        has_trail = False
        raise
    finally:
        if has_trail:
            _try_to_record(trail, {"event": "daemon-stopped", "pid": os.getpid()})


def _try_to_record(trail: AuditTrail, event: dict[str, Any]) -> None:
    """Tell the trail of something that has come about anyway."""
    try:
        trail.record(event)
    except AuditFailed as error:
        log.error("something is missing in the audit trail", missing=event, error=str(error))


def _describe_cause(cause: Cause) -> dict[str, Any]:
    match cause:
        case Exited(code=code):
            return {"exited": {"code": code}}
        case Killed(signal=signal):
            return {"killed": {"signal": signal}}
        case Stopped(by=by, signal=signal, outcome=outcome):
            return {"stopped": {"by": {"id": by.id, "name": by.name}, "signal": signal, **_describe_outcome(outcome)}}
        case TimedOut(timeout_seconds=seconds, signal=signal):
            return {"timed_out": {"timeout": seconds, "signal": signal}}
        case Lost(detail=detail):
            return {"lost": {"detail": detail}}


def _describe_outcome(outcome: Exited | Killed) -> dict[str, int]:
    match outcome:
        case Exited(code=code):
            return {"exit_code": code}
        case Killed(signal=signal):
            return {"killed_by_signal": signal}


def _summary(stream: str, summary: StreamSummary) -> dict[str, Any]:
    return {"stream": stream, "size_bytes": summary.size_bytes, "xxh3_128": summary.xxh3_128}


def _time(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09}+00:00"
