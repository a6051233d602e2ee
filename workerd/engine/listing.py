"""What a list holds of each job: a bounded part of what was asked for, whatever its size."""

from dataclasses import dataclass

import msgspec

from workerd.engine.account import own_name
from workerd.engine.job import DamagedJob, Exited, Job, JobEnd, Killed, Lost, Stopped, TimedOut

ARGUMENT_BYTES = 4096
"""Of the arguments of one job."""
PAGE_BYTES = 1 << 20
"""Of one page, as messages of api.proto, unless a single job takes more."""
PAGE_SECONDS = 2.0
"""How long to look for jobs in certain states before a page ends, perhaps empty."""
_ARGUMENT_COST = 3  # what a message has besides each text: a tag, and a length
_ROW_COST = 512  # all that is not text, and the tags and lengths of the texts that there is one of


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first, and the position to go on from; None when there are no more."""

    rows: tuple[Job | DamagedJob, ...]
    next: tuple[int, str] | None

    @property
    def jobs(self) -> tuple[Job, ...]:
        """The jobs that can be read."""
        return tuple(row for row in self.rows if isinstance(row, Job))


def shorten(job: Job, argument_bytes: int = ARGUMENT_BYTES) -> Job:
    """Return a job without its environment variables, and with only the first of its arguments if they are long."""
    args, left = [], argument_bytes
    for text in job.spec.args:
        data = text.encode()
        left -= len(data) + _ARGUMENT_COST
        if left < 0:
            if kept := data[: max(0, len(data) + left)].decode(errors="ignore"):
                args.append(kept)
            break
        args.append(text)
    spec = msgspec.structs.replace(job.spec, args=tuple(args), envs={})
    return msgspec.structs.replace(job, spec=spec, args_cut=job.args_cut or left < 0)


def row_bytes(row: Job | DamagedJob) -> int:
    """Return how many bytes a job takes in a page, or some more."""
    if isinstance(row, DamagedJob):
        return _ROW_COST + _size(row.id, row.owner.id, row.owner.name, row.damage)
    spec, end = row.spec, row.status.end
    by = spec.spawned_by
    names = (spec.owner.name, spec.name, spec.run_as or own_name())
    texts = (spec.id, spec.owner.id, spec.program, spec.working_directory, *names)
    return (
        _ROW_COST
        + _size(*texts, *(() if by is None else (by.id, by.name)), *(() if end is None else _texts_of(end)))
        + _size(*spec.args)
        + len(spec.args) * _ARGUMENT_COST
    )


def _texts_of(end: JobEnd) -> tuple[str, ...]:
    match end.cause:
        case Stopped(by=by):
            return by.id, by.name
        case Lost(detail=detail):
            return (detail,)
        case Exited() | Killed() | TimedOut():
            return ()


def _size(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)
