"""The client as a library: calls to one daemon, and a log that survives cut connections.

Example:
    async with Client(Target()) as client:
        job_id = await client.spawn(SpawnRequest(program="make", args=["test"]))
        async for event in client.stream_log(job_id):
            ...
"""

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from grpclib.exceptions import GRPCError, StreamTerminatedError
from worker_api.worker.v1 import (
    Job,
    JobState,
    ListRequest,
    ListResponse,
    RemoveRequest,
    SpawnRequest,
    StatusRequest,
    StopRequest,
    Stream,
    StreamLogRequest,
    StreamLogResponse,
    WhoAmIRequest,
    WhoAmIResponse,
    WorkerServiceStub,
)

from workerctl.errors import ConnectionLost, Refused, Unavailable, Unreachable, from_grpc
from workerctl.target import Target
from workerctl.transport import WorkerChannel

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_GIVE_UP_AFTER = 12


class Client:
    """Calls one daemon as one user. An asynchronous context manager; connects when first needed.

    Args:
        target: which daemon, and as whom.
        on_retry: told, as a sentence, whenever a cut connection is about to be taken up again.
    """

    def __init__(self, target: Target, on_retry: Callable[[str], None] | None = None) -> None:
        self._target = target
        self._on_retry = on_retry
        self._channel: WorkerChannel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()

    async def call(self, make: Callable[[WorkerChannel], Awaitable[T]]) -> T:
        """Make any call of any service that answers with one message.

        Args:
            make: makes the call, for instance `lambda channel: GreeterStub(channel).greet(request)`.

        Raises:
            ClientError: whatever went wrong.
        """
        channel = self._connect()
        try:
            return await make(channel)
        except (GRPCError, StreamTerminatedError, OSError) as error:
            raise _translate(error, channel) from error

    async def spawn(self, request: SpawnRequest) -> str:
        """Start a job and return its id."""
        response = await self.call(lambda channel: WorkerServiceStub(channel).spawn(request))
        return response.job_id

    async def stop(self, job_id: str, grace: timedelta | None = None) -> Job:
        """Order a job to be stopped; None leaves the grace to the daemon."""
        request = StopRequest(job_id=job_id, grace=grace)
        return _job((await self.call(lambda channel: WorkerServiceStub(channel).stop(request))).job)

    async def status(self, job_id: str) -> Job:
        """Describe a job."""
        request = StatusRequest(job_id=job_id)
        return _job((await self.call(lambda channel: WorkerServiceStub(channel).status(request))).job)

    async def remove(self, job_id: str) -> None:
        """Delete a job that has ended."""
        request = RemoveRequest(job_id=job_id)
        await self.call(lambda channel: WorkerServiceStub(channel).remove(request))

    async def list_jobs(self, states: Collection[JobState] = (), name: str = "") -> AsyncIterator[Job]:
        """Describe the caller's jobs, newest first, page by page as they are taken."""
        token = ""
        while True:
            request = ListRequest(states=list(states), name=name, page_token=token)
            page = await self.call(partial(_list, request))
            for job in page.jobs:
                yield job
            token = page.next_page_token
            if not token:
                return

    async def whoami(self) -> WhoAmIResponse:
        """Ask who the daemon takes the caller for."""
        return await self.call(lambda channel: WorkerServiceStub(channel).who_am_i(WhoAmIRequest()))

    async def stream_log(
        self,
        job_id: str,
        *,
        offset: int = 0,
        last_bytes: int | None = None,
        streams: Collection[Stream] = (),
        follow: bool = True,
    ) -> AsyncGenerator[StreamLogResponse, None]:
        """Read a job's log. A connection that breaks is taken up again where it was cut, without loss or doubling.

        Args:
            job_id: a UUID as text.
            offset: where to begin, in bytes of the combined output.
            last_bytes: begin so many bytes before the end as it stands instead; zero for only what is yet to come.
            streams: which streams; empty for all.
            follow: whether to go on until the job's end.

        Raises:
            ClientError: whatever went wrong, after the connection could not be taken up again for some time.
        """
        if last_bytes is not None:  # an offset stays true however often the connection breaks
            job = await self.status(job_id)
            offset = max(0, job.stdout_bytes + job.stderr_bytes - last_bytes)
        failures = 0
        served = False
        while True:
            request = StreamLogRequest(job_id=job_id, offset_bytes=offset, streams=list(streams), follow=follow)
            channel = self._connect()
            try:
                async for event in WorkerServiceStub(channel).stream_log(request):
                    failures = 0
                    served = True
                    if event.output is not None:
                        offset = event.output.offset_bytes + len(event.output.data)
                    elif event.gap is not None:
                        offset = event.gap.to_offset_bytes
                    yield event
                    if event.end is not None:
                        return
            except (GRPCError, StreamTerminatedError, OSError) as error:
                failure = _translate(error, channel)
                failures += 1
                # Who was served by this daemon before is not refused: the connection was cut within its handshake.
                passing = (ConnectionLost, Unreachable, Unavailable, *((Refused,) if served else ()))
                served = served or isinstance(failure, ConnectionLost | Unavailable)
                if not isinstance(failure, passing) or failures > _GIVE_UP_AFTER:
                    raise failure from error
                if self._on_retry is not None:
                    self._on_retry(f"{failure}; trying again from byte {offset}")
                if self._channel is channel:
                    await self.aclose()
                await asyncio.sleep(_pause(failures))
            else:
                return

    def _connect(self) -> WorkerChannel:
        if self._channel is None:
            self._channel = WorkerChannel(*self._target.resolve(), self._target.tls())
        return self._channel


def _translate(error: Exception, channel: WorkerChannel) -> Exception:
    """Turn what grpclib and the network raise into the client's own errors."""
    match error:
        case GRPCError():
            return from_grpc(error)
        case StreamTerminatedError():
            return (Refused if channel.refused else ConnectionLost)(channel.endpoint, channel.lost_because)
        case ssl.SSLCertVerificationError():
            problem = f"its certificate does not hold: {error.verify_message}: check --pki-dir"
            return Refused(channel.endpoint, problem)
        case ssl.SSLError():
            return Unreachable(channel.endpoint, f"TLS failed: {error.reason or error}")
        case OSError():
            problem = error.strerror or str(error) or "it closed the connection"
            return Unreachable(channel.endpoint, f"{problem}: is workerd running there?")
        case _:
            return error


async def _list(request: ListRequest, channel: WorkerChannel) -> ListResponse:
    return await WorkerServiceStub(channel).list(request)


def _pause(failures: int) -> float:
    """Choose how long to wait before the next attempt, in seconds: doubling, bounded, and never all at once."""
    return random.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0**failures)  # noqa: S311


def _job(job: Job | None) -> Job:
    if job is None:
        raise AssertionError("the daemon answered without a job")
    return job
