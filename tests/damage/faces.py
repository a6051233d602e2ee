"""What is asked of a service that runs jobs, in one vocabulary for an engine and for a daemon."""

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Any, Protocol

import worker_api.worker.v1 as api

from workerd.engine.job import Job, Stream, User

BOTH = frozenset(Stream)


class DamageReported(Exception):
    """The service said that the job is damaged."""


class Missing(Exception):
    """The service said that there is no such job."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list.

    Attributes:
        owner: the owner's id; empty when it is not known.
        value: the whole row, to be compared; None for a job that is listed as damaged.
        problem: what such a row says.
    """

    id: str
    owner: str
    value: object
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a log."""

    offset: int
    stream: int
    stream_offset: int
    time_ns: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Hole:
    """A range of a log that is said to have been released."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class End:
    """The end of a log: the whole value, to be compared."""

    value: Any


Event = Piece | Hole | End


def has_ended(job: Any) -> bool:
    """Return whether a status, of whichever face, is that of a job that has ended."""
    match job:
        case Job():
            return job.ended
        case api.Job():
            return job.state is api.JobState.ENDED
        case _:
            return True


class Face(Protocol):
    """What is asked of a service. All methods raise `DamageReported` and `Missing`, and pass other errors on.

    Attributes:
        name: of the kind of face; what it tells is compared only with what one of the same kind told.
    """

    name: str

    async def rows(self, owner: User | None) -> list[Row]: ...

    async def status(self, job_id: str, owner: User) -> Any: ...

    def read(
        self, job_id: str, owner: User, offset: int, streams: Collection[Stream] = BOTH, *, follow: bool
    ) -> AsyncGenerator[Event, None]: ...

    async def rights(self, job_id: str, owner: User) -> frozenset[tuple[str, str]]: ...

    async def spawn(self, owner: User, key: str, command: list[str]) -> str: ...

    async def remove(self, job_id: str, owner: User) -> None: ...

    async def exit_code(self, job_id: str, owner: User) -> int | None:
        """Return what the command line exits with for a status; None where there is none."""
