"""A daemon as a face: its own process, over mutual TLS."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import worker_api.worker.v1 as api
from grpclib.const import Status

from tests.daemon import Daemon
from tests.damage.faces import BOTH, DamageReported, End, Event, Hole, Missing, Piece, Row
from tests.damage.jobs import ADMIN
from workerctl import errors
from workerctl.client import Client
from workerctl.events import Output
from workerctl.log import LogCheck
from workerctl.retry import Patience
from workerd.engine.job import Stream, User

_START_SECONDS = 20.0
_T = TypeVar("_T")


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
                        case Output(offset_bytes=start, stream=stream, stream_offset_bytes=own, data=data):
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

    async def remove(self, job_id: str, owner: User) -> None:
        await self._ask(owner, lambda client: client.remove(job_id))

    async def exit_code(self, job_id: str, owner: User) -> int | None:
        user = await self._reader(job_id, owner)
        ran = await asyncio.to_thread(self.daemon.workerctl, "status", "--uuid", job_id, user=user)
        return ran.returncode

    async def _reader(self, job_id: str, owner: User) -> str:
        """Return the name of the user who may read a job's log."""
        try:
            await self.client(owner.name).status(job_id)
        except errors.JobNotFound:
            return ADMIN
        except errors.ClientError:
            pass
        return owner.name

    async def _ask(self, owner: User, call: Callable[[Client], Awaitable[_T]]) -> _T:
        with _client_errors(), suppress(errors.JobNotFound):
            return await call(self.client(owner.name))
        with _client_errors():
            return await call(self.client(ADMIN))


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


def _client_row(job: api.Job) -> Row:
    """Turn an element of a client's list into a row."""
    owner = "" if job.owner is None else job.owner.id
    if job.state is api.JobState.DAMAGED:
        return Row(job.id, owner, None, job.damage)
    return Row(job.id, owner, job)


async def _start(daemon: Daemon) -> None:
    starting = asyncio.create_task(asyncio.to_thread(daemon.start))
    done, _ = await asyncio.wait([starting], timeout=_START_SECONDS)
    if not done and daemon.process is not None:
        daemon.process.kill()  # its pipe closes then, for which the thread waits
    await starting


@contextmanager
def _client_errors() -> Iterator[None]:
    try:
        yield
    except errors.JobNotFound as error:
        raise Missing(str(error)) from error
    except errors.LogDamaged as error:
        raise DamageReported(str(error)) from error
    except errors.CallFailed as error:
        if error.status is not Status.DATA_LOSS:
            raise
        raise DamageReported(str(error)) from error
