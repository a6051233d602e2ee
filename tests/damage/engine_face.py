"""An engine in this process as a face."""

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

from tests.damage.faces import BOTH, DamageReported, End, Event, Hole, Missing, Piece, Row
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import JobNotFound, SpoolCorrupt
from workerd.engine.job import DamagedJob, Job, JobEnd, Stream, User
from workerd.engine.reader import Gap, Output
from workerd.engine.request import SpawnRequest

_PAGE = 20


class EngineFace:
    """An engine."""

    name = "engine"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def rows(self, owner: User | None) -> list[Row]:
        owner_id = None if owner is None else owner.id
        rows: list[Row] = []
        after = None
        while True:
            page = await self.engine.list_jobs(owner_id, states=(), name="", size=_PAGE, after=after)
            rows += map(_row, page.rows)
            after = page.next
            if after is None:
                return rows

    async def status(self, job_id: str, owner: User) -> Job:  # noqa: ARG002
        with _engine_errors():
            return self.engine.status(job_id)

    async def read(
        self,
        job_id: str,
        owner: User,  # noqa: ARG002
        offset: int,
        streams: Collection[Stream] = BOTH,
        *,
        follow: bool,
    ) -> AsyncGenerator[Event, None]:
        with _engine_errors():
            log = self.engine.read_log(job_id, Start(offset), streams, follow=follow)
            async with aclosing(log) as batches:
                async for events in batches:
                    for event in events:
                        yield _event(event)

    async def rights(self, job_id: str, owner: User) -> frozenset[tuple[str, str]]:  # noqa: ARG002
        with _engine_errors():
            shares = self.engine.find(job_id).shares
        return frozenset((share.user.id, right) for share in shares for right in share.rights)

    async def spawn(self, owner: User, key: str, command: list[str]) -> str:
        request = SpawnRequest(owner=owner, program=command[0], args=tuple(command[1:]), request_key=key)
        with _engine_errors():
            return await self.engine.spawn(request)

    async def remove(self, job_id: str, owner: User) -> None:  # noqa: ARG002
        with _engine_errors():
            await self.engine.remove(job_id)

    async def exit_code(self, job_id: str, owner: User) -> int | None:  # noqa: ARG002
        return None


@asynccontextmanager
async def engine_on(state: Path) -> AsyncIterator[EngineFace]:
    """Run an engine on a state directory."""
    async with Engine(state) as engine:
        yield EngineFace(engine)


def _row(entry: Job | DamagedJob) -> Row:
    """Turn an element of an engine's page into a row."""
    if isinstance(entry, DamagedJob):
        return Row(entry.id, entry.owner.id, None, entry.damage)
    return Row(entry.id, entry.spec.owner.id, entry)


def _event(event: Output | Gap | JobEnd) -> Event:
    match event:
        case Output():
            return Piece(event.offset, int(event.stream), event.stream_offset, event.time_ns, event.data)
        case Gap():
            return Hole(event.start, event.end)
        case JobEnd():
            return End(event)


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except SpoolCorrupt as error:
        raise DamageReported(str(error)) from error
    except JobNotFound as error:
        raise Missing(str(error)) from error
