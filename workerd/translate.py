"""The engine's records as the contract's messages, and back. Shared by the handlers; nothing is decided here."""

from datetime import UTC, datetime, timedelta

import worker_api.worker.v1 as api

from workerd.engine import job as engine
from workerd.engine.account import own_name
from workerd.engine.errors import InvalidArgument

_STATES = {
    engine.JobState.STARTING: api.JobState.STARTING,
    engine.JobState.RUNNING: api.JobState.RUNNING,
    engine.JobState.STOPPING: api.JobState.STOPPING,
    engine.JobState.ENDED: api.JobState.ENDED,
    engine.JobState.DAMAGED: api.JobState.DAMAGED,
}
_STATES_BACK = {theirs: ours for ours, theirs in _STATES.items()}
_STREAMS = {engine.Stream.STDOUT: api.Stream.STDOUT, engine.Stream.STDERR: api.Stream.STDERR}
_STREAMS_BACK = {theirs: ours for ours, theirs in _STREAMS.items()}


def to_user(user: engine.User) -> api.User:
    """Make a message of a user."""
    return api.User(id=user.id, name=user.name)


def from_state(state: api.JobState) -> engine.JobState:
    """Read a state off a message.

    Raises:
        InvalidArgument: it is no state.
    """
    try:
        return _STATES_BACK[state]
    except KeyError:
        raise InvalidArgument("states", f"cannot be JOB_STATE_{state}") from None


def from_stream(stream: api.Stream) -> engine.Stream:
    """Read a stream off a message.

    Raises:
        InvalidArgument: it is no stream.
    """
    try:
        return _STREAMS_BACK[stream]
    except KeyError:
        raise InvalidArgument("streams", f"cannot be STREAM_{stream}") from None


def to_row(job: engine.Job | engine.DamagedJob) -> api.Job:
    """Make a message of a job in a list, where one that cannot be described must not keep the others from being."""
    if isinstance(job, engine.Job):
        try:
            return to_job(job)
        except (ValueError, OverflowError) as error:
            job = engine.DamagedJob(id=job.id, owner=job.spec.owner, created_ns=0, damage=str(error))
    return api.Job(
        id=job.id,
        owner=to_user(job.owner),
        state=api.JobState.DAMAGED,
        created_at=_time(job.created_ns),
        damage=job.damage,
    )


def to_job(job: engine.Job) -> api.Job:
    """Make a message of a job."""
    spec, status = job.spec, job.status
    return api.Job(
        id=spec.id,
        name=spec.name,
        owner=to_user(spec.owner),
        program=spec.program,
        args=list(spec.args),
        working_directory=spec.working_directory,
        state=_STATES[status.state],
        created_at=_time(spec.created_ns),
        started_at=_time(status.started_ns) if status.started_ns else None,
        pid=status.pid,
        stdout_bytes=job.stdout_bytes,
        stderr_bytes=job.stderr_bytes,
        timeout=None if spec.timeout_seconds is None else timedelta(seconds=spec.timeout_seconds),
        kept_from_offset_bytes=job.kept_from,
        max_log_bytes=spec.max_log_bytes,
        waits_for_room=status.waits_for_room,
        log_ended_early=status.log_ended_early,
        end=None if status.end is None else to_end(status.end),
        spawned_by=None if spec.spawned_by is None else to_user(spec.spawned_by),
        run_as=spec.run_as or own_name(),
        args_cut=job.args_cut,
    )


def to_end(end: engine.JobEnd) -> api.JobEnd:
    """Make a message of a job's end."""
    message = api.JobEnd(
        started_at=_time(end.started_ns) if end.started_ns else None,
        ended_at=_time(end.ended_ns),
        user_cpu_time=timedelta(seconds=end.user_cpu_seconds),
        system_cpu_time=timedelta(seconds=end.system_cpu_seconds),
        peak_memory_bytes=end.peak_memory_bytes,
        streams=[_summary(api.Stream.STDOUT, end.stdout), _summary(api.Stream.STDERR, end.stderr)],
        log_ended_early=end.log_ended_early,
    )
    match end.cause:
        case engine.Exited(code=code):
            message.exited = api.Exited(code=code)
        case engine.Killed(signal=signal):
            message.killed = api.Killed(signal=signal)
        case engine.Stopped(by=by, signal=signal, outcome=engine.Exited(code=code)):
            message.stopped = api.Stopped(by=to_user(by), signal=signal, exit_code=code)
        case engine.Stopped(by=by, signal=signal, outcome=engine.Killed(signal=killed_by)):
            message.stopped = api.Stopped(by=to_user(by), signal=signal, killed_by_signal=killed_by)
        case engine.TimedOut(timeout_seconds=seconds, signal=signal):
            message.timed_out = api.TimedOut(timeout=timedelta(seconds=seconds), signal=signal)
        case engine.Lost(detail=detail):
            message.lost = api.Lost(detail=detail)
    return message


def _summary(stream: api.Stream, summary: engine.StreamSummary) -> api.StreamSummary:
    return api.StreamSummary(stream=stream, size_bytes=summary.size_bytes, xxh3_128=bytes.fromhex(summary.xxh3_128))


def _time(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // 10**9, UTC) + timedelta(microseconds=ns % 10**9 // 1000)
