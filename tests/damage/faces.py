"""Two ways to the same jobs, with one vocabulary: an engine in this process, and a daemon over mutual TLS."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import worker_api.worker.v1 as api
from grpclib.const import Status

from tests.daemon import Daemon
from tests.damage.jobs import ADMIN
from workerctl import errors as client_errors
from workerctl.client import Client
from workerctl.events import Output as ClientOutput
from workerctl.log import LogCheck
from workerctl.retry import Patience
from workerd.engine import job as engine_job
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import JobNotFound, SpoolCorrupt
from workerd.engine.job import Job, JobEnd, Stream, User
from workerd.engine.reader import Gap, Output
from workerd.engine.request import SpawnRequest
from workerd.engine.storage import DEFAULT_STORAGE, Storage

PAGE = 20
START_SECONDS = 20.0
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

    async def stop(self, job_id: str, owner: User) -> None: ...

    async def remove(self, job_id: str, owner: User) -> None: ...


def _row(entry: Any) -> Row:
    """Turn an element of an engine's page into a row: a `Job`, or a `DamagedJob` where the engine has such."""
    damaged = getattr(engine_job, "DamagedJob", None)
    if damaged is not None and isinstance(entry, damaged):
        owner = entry.owner
        return Row(entry.id, str(getattr(owner, "id", owner) or ""), None, str(entry.damage))
    return Row(entry.id, entry.spec.owner.id, entry)


def _client_row(job: api.Job) -> Row:
    """Turn an element of a client's list into a row."""
    owner = "" if job.owner is None else job.owner.id
    if job.state.name == "DAMAGED":
        return Row(job.id, owner, None, str(getattr(job, "damage", "")))
    return Row(job.id, owner, job)


class EngineFace:
    """An engine."""

    name = "engine"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def rows(self, owner: User | None) -> list[Row]:
        rows: list[Row] = []
        after = None
        while True:
            page = await self.engine.list_jobs(owner and owner.id, states=(), name="", size=PAGE, after=after)
            rows += map(_row, page.jobs)
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
            _, shares = self.engine.owner_and_shares(job_id)
        return frozenset((share.user.id, right) for share in shares for right in share.rights)

    async def spawn(self, owner: User, key: str, command: list[str]) -> str:
        request = SpawnRequest(owner=owner, program=command[0], args=tuple(command[1:]), request_key=key)
        with _engine_errors():
            return await self.engine.spawn(request)

    async def stop(self, job_id: str, owner: User) -> None:
        with _engine_errors():
            await self.engine.stop(job_id, owner, 0.0)

    async def remove(self, job_id: str, owner: User) -> None:  # noqa: ARG002
        with _engine_errors():
            await self.engine.remove(job_id)


class DaemonFace:
    """A daemon, as its users see it; what the owner may not see any more is asked for as an administrator."""

    name = "daemon"

    def __init__(self, daemon: Daemon, clients: Callable[[str], Client]) -> None:
        self.daemon = daemon
        self.client = clients

    async def rows(self, owner: User | None) -> list[Row]:
        client = self.client(ADMIN if owner is None else owner.name)
        return [_client_row(job) async for job in client.list_jobs(all_owners=owner is None)]

    async def status(self, job_id: str, owner: User) -> api.Job:
        return await self._ask(owner, lambda client: client.status(job_id))

    async def read(
        self, job_id: str, owner: User, offset: int, streams: Collection[Stream] = BOTH, *, follow: bool
    ) -> AsyncGenerator[Event, None]:
        user = await self._reader(job_id, owner)
        wanted = [api.Stream(stream) for stream in streams]
        check = LogCheck(wanted, from_start=offset == 0)
        with _client_errors():
            log = self.client(user).stream_log(job_id, offset=offset, streams=wanted, follow=follow)
            async with aclosing(log) as events:
                async for event in events:
                    match event:
                        case ClientOutput(offset_bytes=start, stream=stream, stream_offset_bytes=own, data=data):
                            check.output(event)
                            yield Piece(start, int(stream), own, event.time_unix_nano, data)
                        case api.Gap():
                            check.gap(event)
                            yield Hole(event.from_offset_bytes, event.to_offset_bytes)
                        case api.JobEnd():
                            check.end(event)
                            yield End(event)

    async def rights(self, job_id: str, owner: User) -> frozenset[tuple[str, str]]:
        shares = await self._ask(owner, lambda client: client.share(job_id))
        return frozenset((share.user.id, right) for share in shares if share.user for right in share.rights)

    async def spawn(self, owner: User, key: str, command: list[str]) -> str:
        request = api.SpawnRequest(program=command[0], args=command[1:], request_key=key)
        with _client_errors():
            return await self.client(owner.name).spawn(request)

    async def stop(self, job_id: str, owner: User) -> None:
        await self._ask(owner, lambda client: client.stop(job_id, timedelta(0)))

    async def remove(self, job_id: str, owner: User) -> None:
        await self._ask(owner, lambda client: client.remove(job_id))

    async def _reader(self, job_id: str, owner: User) -> str:
        """Return the name of the user who may read a job's log."""
        try:
            await self.client(owner.name).status(job_id)
        except client_errors.JobNotFound:
            return ADMIN
        except client_errors.ClientError:
            pass
        return owner.name

    async def _ask(self, owner: User, call: Callable[[Client], Any]) -> Any:
        with _client_errors(), suppress(client_errors.JobNotFound):
            return await call(self.client(owner.name))
        with _client_errors():
            return await call(self.client(ADMIN))


@asynccontextmanager
async def engine_on(state: Path, storage: Storage = DEFAULT_STORAGE) -> AsyncIterator[EngineFace]:
    """Run an engine on a state directory."""
    async with Engine(state, storage) as engine:
        yield EngineFace(engine)


@asynccontextmanager
async def daemon_on(state: Path, *options: str) -> AsyncIterator[DaemonFace]:
    """Run a daemon on a state directory."""
    daemon = Daemon(state, ("--roles.admin", ADMIN, *options))
    try:
        await _start(daemon)
        async with AsyncExitStack() as stack:
            clients: dict[str, Client] = {}

            def client(user: str) -> Client:
                if user not in clients:
                    clients[user] = Client(daemon.target(user), patience=Patience(retry_seconds=5.0))
                    stack.push_async_callback(clients[user].aclose)
                return clients[user]

            yield DaemonFace(daemon, client)
    finally:
        if daemon.process is not None:
            daemon.stop()


async def _start(daemon: Daemon) -> None:
    starting = asyncio.create_task(asyncio.to_thread(daemon.start))
    done, _ = await asyncio.wait([starting], timeout=START_SECONDS)
    if not done and daemon.process is not None:
        daemon.process.kill()  # its pipe closes then, for which the thread waits
    await starting


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


@contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except client_errors.JobNotFound as error:
        raise Missing(str(error)) from error
    except client_errors.LogDamaged as error:
        raise DamageReported(str(error)) from error
    except client_errors.CallFailed as error:
        if error.status is not Status.DATA_LOSS:
            raise
        raise DamageReported(str(error)) from error
