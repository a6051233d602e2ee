"""The client as a library: calls to one daemon, and a log that survives cut connections.

Example:
    async with Client(Target()) as client:
        job_id = await client.spawn(SpawnRequest(program="make", args=["test"]))
        async for event in client.stream_log(job_id):
            ...
"""

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from grpclib.exceptions import StreamTerminatedError
from worker_api.worker.v1 import (
    ErrorReason,
    ExplainDecisionRequest,
    ExplainDecisionResponse,
    Gap,
    IssueCredentialRequest,
    IssueCredentialResponse,
    Job,
    JobEnd,
    JobState,
    ListRequest,
    ListResponse,
    RemoveRequest,
    Share,
    ShareRequest,
    SpawnRequest,
    StatusRequest,
    StopRequest,
    Stream,
    StreamLogRequest,
    WhoAmIRequest,
    WhoAmIResponse,
    WorkerServiceStub,
)

from workerctl.errors import CallFailed, ClientError, DaemonNotStarted, GaveUp, NotAuthenticated
from workerctl.events import LogEvent, Output, decode_event
from workerctl.failures import FAILURES, translate
from workerctl.retry import Attempts, Patience
from workerctl.target import Target
from workerctl.transport import WorkerChannel

_T = TypeVar("_T")

_STREAM_LOG = "/worker.v1.WorkerService/StreamLog"
_CERTIFICATE_REASONS = (ErrorReason.CERTIFICATE_EXPIRED, ErrorReason.CERTIFICATE_REVOKED)


class Client:
    """Calls one daemon as one user. An asynchronous context manager; connects when first needed.

    A call that may be repeated is repeated when the connection breaks, when the daemon cannot be reached, when it says
    that it is not available, and when another program is at the endpoint of a daemon that this client has talked to,
    for as long as `patience` says. The endpoint and the certificate are read again for each connection: a call that
    fails for a certificate that was replaced is repeated with the new one.

    Args:
        target: which daemon, and as whom.
        on_retry: called with a sentence when a failed call is going to be repeated: once, however often it takes, and
            once more when another program has the daemon's port.
        patience: how long to bear with a daemon that does not answer.

    Attributes:
        away: whether the last that was tried failed and is being tried again.
    """

    def __init__(
        self, target: Target, on_retry: Callable[[str], None] | None = None, patience: Patience = Patience()
    ) -> None:
        self.away = False
        self._target = target
        self._on_retry = on_retry
        self._patience = patience
        self._channel: WorkerChannel | None = None
        self._stamp: tuple[int, ...] | None = None  # of the certificate that the channel presents
        self._connecting = asyncio.Lock()
        self._acquainted = False
        self._told_of_stranger = False  # since the daemon was last there

    @property
    def endpoint(self) -> str:
        """Where the daemon is, as far as it is known: of the connection that there is, or as it was given."""
        return self._target.name if self._channel is None else self._channel.endpoint

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
            self._acquainted = self._acquainted or channel.heard_at is not None
            await channel.aclose()

    async def call(self, make: Callable[[WorkerChannel], Awaitable[_T]], *, repeat: bool = False) -> _T:
        """Make any call of any service that answers with one message.

        Args:
            make: makes the call, for instance `lambda channel: GreeterStub(channel).greet(request)`.
            repeat: whether the call may be made again when it is not known what became of it.

        Raises:
            GaveUp: the call was repeated for as long as the client's patience lasts.
            ClientError: whatever else went wrong.
        """
        attempts = Attempts(self._patience)
        intention = "trying again" if repeat else None
        while True:
            channel = await self._connect_patiently(attempts, intention)
            try:
                response = await make(channel)
            except FAILURES as error:
                failure = translate(error, channel)
                if not await self._bear(failure, channel, attempts, intention):
                    raise failure from error
            else:
                self.away = False
                return response

    async def spawn(self, request: SpawnRequest) -> str:
        """Start a job and return its id. Without a request key it is given one: repeated, it starts no second job."""
        if not request.request_key:
            request = dataclasses.replace(request, request_key=str(uuid.uuid4()))
        response = await self.call(lambda channel: WorkerServiceStub(channel).spawn(request), repeat=True)
        return response.job_id

    async def stop(self, job_id: str, grace: timedelta | None = None) -> Job:
        """Order a job to be stopped; None leaves the grace to the daemon."""
        request = StopRequest(job_id=job_id, grace=grace)
        return _job((await self.call(lambda channel: WorkerServiceStub(channel).stop(request), repeat=True)).job)

    async def status(self, job_id: str, *, show_envs: bool = False) -> Job:
        """Describe a job, with the environment variables of its spawn if that is asked for."""
        request = StatusRequest(job_id=job_id, show_envs=show_envs)
        return _job((await self.call(lambda channel: WorkerServiceStub(channel).status(request), repeat=True)).job)

    async def remove(self, job_id: str) -> None:
        """Delete a job that has ended."""
        request = RemoveRequest(job_id=job_id)
        await self.call(lambda channel: WorkerServiceStub(channel).remove(request))

    async def list_jobs(
        self, states: Collection[JobState] = (), name: str = "", *, all_owners: bool = False
    ) -> AsyncGenerator[Job, None]:
        """Describe the caller's jobs, or all that the caller may see, newest first, page by page as they are taken."""
        token = ""
        while True:
            request = ListRequest(states=list(states), name=name, page_token=token, all_owners=all_owners)
            page = await self.call(partial(_list, request), repeat=True)
            for job in page.jobs:
                yield job
            token = page.next_page_token
            if not token:
                return

    async def share(self, job_id: str, user: str = "", rights: Collection[str] = ()) -> list[Share]:
        """Set what another user, by name or id, may do with a job; without one nothing is changed.

        Returns:
            With whom the job is shared now.
        """
        request = ShareRequest(job_id=job_id, user=user, rights=sorted(set(rights)))
        return (await self.call(lambda channel: WorkerServiceStub(channel).share(request), repeat=True)).shares

    async def explain(
        self,
        right: str,
        *,
        user: str = "",
        job_id: str | None = None,
        target: str = "",
        policies: str = "",
        policies_name: str = "",
    ) -> ExplainDecisionResponse:
        """Ask whether somebody might do something, and by which policies.

        Args:
            right: as "stop".
            user: by name or id; empty for the caller.
            job_id: what it would be done to; None for what concerns no job.
            target: the account or user that it concerns, for "run-as" and "impersonate".
            policies: what is to count besides the policies in force, in Cedar's language.
            policies_name: what their file is called; they take the place of one of this name that is in force.
        """
        request = ExplainDecisionRequest(
            policies=policies, user=user, right=right, job_id=job_id, target=target, policies_name=policies_name
        )
        return await self.call(lambda channel: WorkerServiceStub(channel).explain_decision(request), repeat=True)

    async def whoami(self) -> WhoAmIResponse:
        """Ask who the daemon takes the caller for."""
        return await self.call(lambda channel: WorkerServiceStub(channel).who_am_i(WhoAmIRequest()), repeat=True)

    async def issue_credential(
        self, certificate_request: bytes, rights: Collection[str], lifetime: timedelta | None = None
    ) -> IssueCredentialResponse:
        """Have a certificate issued that is good for fewer rights and a shorter time than the one presented.

        Args:
            certificate_request: PKCS #10 in DER or PEM, signed with the key that the certificate is to be for:
                `pki.narrowing` makes one, `openssl req -new` another.
            rights: what it is to be good for.
            lifetime: for how long; None leaves it to the daemon.

        Raises:
            InvalidRequest: the request looks like PEM and is none.
        """
        from pki.narrowing import to_der  # it stands on cryptography, which is slow to import

        request = IssueCredentialRequest(
            certificate_request=to_der(certificate_request), rights=sorted(rights), lifetime=lifetime
        )
        return await self.call(lambda channel: WorkerServiceStub(channel).issue_credential(request), repeat=True)

    async def stream_log(
        self,
        job_id: str,
        *,
        offset: int = 0,
        last_bytes: int | None = None,
        streams: Collection[Stream] = (),
        follow: bool = True,
    ) -> AsyncGenerator[LogEvent, None]:
        """Read a job's log. A connection that breaks is taken up again where it was cut, without loss or doubling.

        Args:
            job_id: a UUID as text.
            offset: where to begin, in bytes of the combined output.
            last_bytes: begin so many bytes before the end as it stands instead; zero for only what is yet to come.
            streams: which streams; empty for all.
            follow: whether to go on until the job's end.

        Yields:
            Events in the order in which the output arrived; the end comes last, and only when the job has ended.

        Raises:
            GaveUp: the connection could not be taken up again for as long as the client's patience lasts.
            ClientError: whatever else went wrong.
        """
        if last_bytes is not None:  # an offset stays true however often the connection breaks
            job = await self.status(job_id)
            offset = max(0, job.stdout_bytes + job.stderr_bytes - last_bytes)
        attempts = Attempts(self._patience)
        while True:
            request = StreamLogRequest(job_id=job_id, offset_bytes=offset, streams=list(streams), follow=follow)
            channel = await self._connect_patiently(attempts, f"trying again from byte {offset}")
            end: JobEnd | None = None
            try:
                async with contextlib.aclosing(channel.receive(_STREAM_LOG, request)) as batches:
                    async for messages in batches:
                        attempts.succeeded()
                        self.away = False
                        for message in messages:
                            event = decode_event(message)
                            match event:
                                case Output():
                                    offset = event.offset_bytes + len(event.data)
                                case Gap():
                                    offset = event.to_offset_bytes
                                case JobEnd():  # the call goes on to its own end, or it would be one that was reset
                                    end = event
                                    continue
                            yield event
                if follow and end is None:  # what is followed has an end: the call was cut off, however politely
                    raise StreamTerminatedError("the log stopped before its end")
            except FAILURES as error:
                failure = translate(error, channel)
                if end is None:
                    if not await self._bear(failure, channel, attempts, f"trying again from byte {offset}"):
                        raise failure from error
                    continue
            if end is not None:
                yield end
            return

    async def _connect_patiently(self, attempts: Attempts, intention: str | None) -> WorkerChannel:
        """Connect as `_connect` does, again and again while the user's own daemon cannot be started.

        Args:
            intention: as for `_bear`.
        """
        while True:
            try:
                return await self._connect()
            except DaemonNotStarted as failure:
                if not await self._bear(failure, None, attempts, intention):
                    raise

    async def _connect(self) -> WorkerChannel:
        async with self._connecting:
            if self._channel is not None and self._channel.lost:
                await self.aclose()
            if self._channel is None:
                if self._target.endpoint is None:  # it may have to start the daemon and wait for it
                    host, port = await asyncio.to_thread(self._target.resolve)
                else:
                    host, port = self._target.resolve()
                self._stamp = self._target.stamp()
                self._channel = WorkerChannel(
                    host, port, self._target.tls(), self._patience.keepalive_seconds, self._target.acting_for()
                )
            return self._channel

    async def _bear(
        self, failure: ClientError, channel: WorkerChannel | None, attempts: Attempts, intention: str | None
    ) -> bool:
        """Take in that a call failed, and wait until it is time to make it again.

        Args:
            channel: what it was made through; None if it did not come so far.
            intention: what is going to be done, for people; None if the call may not be made again.

        Returns:
            False at once if it is not to be made again.

        Raises:
            GaveUp: it has been made again for long enough.
        """
        is_stranger = isinstance(failure, NotAuthenticated) and self._acquainted
        may_pass = failure.may_pass or is_stranger
        if may_pass and channel is self._channel:
            await self.aclose()
        if intention is None or not self._patience.retry_seconds:
            return False
        if self._has_another_certificate(failure, channel):
            if channel is self._channel:
                await self.aclose()
            if self._on_retry is not None:
                self._on_retry(f"the certificate counts no more, but another has taken its place: {intention}")
            return True
        if not may_pass:
            return False
        if isinstance(failure, DaemonNotStarted) and not self._acquainted:
            return False  # it never ran: what keeps it from that does not pass
        pause = attempts.failed(None if channel is None else channel.heard_at, acquainted=self._acquainted)
        if pause is None:
            self.away = False
            endpoint = self._target.name if channel is None else channel.endpoint
            raise GaveUp(endpoint, failure.problem, attempts.tried_seconds) from failure
        if self._acquainted:
            self.away = True
            is_news = attempts.first_failure or (is_stranger and not self._told_of_stranger)
            self._told_of_stranger = is_stranger or (self._told_of_stranger and not attempts.first_failure)
            if is_news and self._on_retry is not None:
                stranger = "the daemon is away and another program may have its port: " if is_stranger else ""
                self._on_retry(f"{stranger}{failure}; {intention}")
        await asyncio.sleep(pause)
        attempts.again()
        return True

    def _has_another_certificate(self, failure: ClientError, channel: WorkerChannel | None) -> bool:
        """Tell whether a call failed for its certificate, in whose place there is another by now."""
        return (
            isinstance(failure, CallFailed)
            and failure.reason in _CERTIFICATE_REASONS
            and (channel is not self._channel or self._target.stamp() != self._stamp)
        )


async def _list(request: ListRequest, channel: WorkerChannel) -> ListResponse:
    return await WorkerServiceStub(channel).list(request)


def _job(job: Job | None) -> Job:
    if job is None:
        raise AssertionError("the daemon answered without a job")
    return job
