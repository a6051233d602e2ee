"""The gate: what every call passes on its way to a handler.

identity (off the certificate, which still counts) → limits → whom the call is made for → request (decoded) → job (named
by `job_id`) → policy → audit trail → handler → response, and whatever goes wrong on that way becomes a status with a
reason. Nothing that a handler raises reaches grpclib raw. A call that answers with a stream ends, as a new one would,
when what it was permitted by is taken back.

A job that is not there is decided on like one of nobody's, so whoever may not see a job can tell by nothing whether it
is there.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote
from weakref import WeakKeyDictionary, WeakValueDictionary

import structlog
from grpclib.const import Handler as Method
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import Connection
from grpclib.server import Stream

from pki.errors import CertificateRefused, IdentityInvalid
from pki.identity import Identity, read_identity
from workerd.access.caller import IMPERSONATE, SEE, Caller
from workerd.access.credentials import Credentials
from workerd.access.lasting import while_passing
from workerd.access.policy import DAEMON, On, Resource
from workerd.access.recorder import Recorder
from workerd.access.rights import Rights
from workerd.access.users import LONGEST_NAME
from workerd.engine.errors import InvalidArgument, JobNotFound, SpoolCorrupt
from workerd.engine.job import User, parse_job_id
from workerd.engine.queues import Queues
from workerd.engine.standing import Found
from workerd.engine.watcher import Change
from workerd.errors import DaemonError, ShuttingDown, UserUnknown, to_grpc
from workerd.failures import containing, tell_failure
from workerd.handler import Call, Daemon, to_resource
from workerd.limits import Meter
from workerd.network.codec import Encoded
from workerd.network.headers import USERNAME
from workerd.network.receiving import receive
from workerd.network.transport import connection_of, encode, has_gone, has_room, room_of, send, wait_for_room
from workerd.notices import Notices
from workerd.pace import Pace
from workerd.registry import Route

log = structlog.get_logger()
_AT_ONCE = 8  # calls of one user and RPC
_CHANGES_AT_ONCE = 16  # of calls that change something, which mostly wait for a supervisor or the disk
_SMALL_BYTES = 1 << 14  # a smaller answer keeps no turn until the client takes it
_STREAMS_BYTES = 16 << 20  # in memory for all streams of a user


class Gate:
    """One grpclib service that is composed of all handlers.

    Args:
        daemon: what handlers work on.
        routes: the handlers, by the paths of their RPCs.
        credentials: who callers may be.
        rights: what they may do.
        recorder: writes down what is decided, and what comes of it.
        meter: counts what users have under way.
        notices: tells which limits are met.
    """

    def __init__(
        self,
        daemon: Daemon,
        routes: Mapping[str, Route],
        credentials: Credentials,
        rights: Rights,
        recorder: Recorder,
        meter: Meter,
        notices: Notices,
    ) -> None:
        self._daemon = daemon
        self._routes = routes
        self._credentials = credentials
        self._rights = rights
        self._recorder = recorder
        self._meter = meter
        self._notices = notices
        # The task that answers a call, as grpclib made it, with the one that does the work.
        self._calls: dict[asyncio.Task[Any], asyncio.Task[None]] = {}
        # Those that are just changing something, which they finish even if nobody waits for it any more.
        self._changing: set[asyncio.Task[Any]] = set()
        self._unheard: set[asyncio.Task[Any]] = set()
        self._identities: WeakKeyDictionary[Connection, Identity] = WeakKeyDictionary()
        self._queues = {True: Queues(_AT_ONCE), False: Queues(_CHANGES_AT_ONCE)}  # by whether the calls only read
        self._paces: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        # Of the checks of streams alone: a revocation waits for none of the user's other steps.
        self._checks: WeakValueDictionary[str, Pace] = WeakValueDictionary()
        self._closing = False

    def __mapping__(self) -> dict[str, Method]:
        """Return which function serves which path, for grpclib."""
        return {path: self._method(route) for path, route in self._routes.items()}

    async def wait_idle(self, timeout_seconds: float) -> None:
        """Wait until the calls that are under way have come to their own end.

        Args:
            timeout_seconds: how long to wait for clients that take their time.
        """
        if under_way := {*self._calls, *self._changing}:
            await asyncio.wait(under_way, timeout=timeout_seconds)

    async def close(self, timeout_seconds: float) -> None:
        """End the calls that are under way, and those that still come, with UNAVAILABLE.

        Args:
            timeout_seconds: how long to wait for clients that take nothing.
        """
        self._closing = True
        for call in {*self._calls.values(), *self._changing}:
            call.cancel()
        await self.wait_idle(timeout_seconds)

    def _method(self, route: Route) -> Method:
        async def serve(stream: Stream[Any, Any]) -> None:
            answering = asyncio.current_task()
            if answering is None:
                raise AssertionError("a call is served outside of any task")
            # A task of its own: only `close` cancels this one, only grpclib the one around it.
            call = asyncio.create_task(self._serve(route, stream))
            call.add_done_callback(_hear)
            self._calls[answering] = call
            answering.add_done_callback(self._calls.pop)
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError:  # the client has gone, just when the call came to its end perhaps
                if call in self._changing:
                    self._unheard.add(call)
                    call.add_done_callback(self._unheard.discard)
                else:
                    call.cancel()
                    await asyncio.wait([call])
                raise
            if call.cancelled():
                raise to_grpc(ShuttingDown())
            try:
                call.result()
            finally:
                del call  # its exception refers to this frame, which would be a cycle

        return Method(serve, route.method.cardinality, route.method.request_type, route.method.reply_type)

    async def _serve(self, route: Route, stream: Stream[Any, Any]) -> None:
        caller = None
        try:
            if self._closing:
                raise ShuttingDown
            caller = self._identify(route, stream)
            streaming = route.method.cardinality.server_streaming
            with self._admit(caller), self._meter.call(caller.identity.user_id, streaming=streaming):
                self._daemon.users.note(caller.user)
                await self._answer(route, stream, caller)
        except (GRPCError, StreamTerminatedError):
            raise
        except Exception as error:
            answer = to_grpc(error)
            tell_failure(self._notices, error, answer, route.path, caller)
            try:
                raise answer from error
            finally:
                del answer  # it refers to this frame, which would be a cycle

    async def _answer(self, route: Route, stream: Stream[Any, Any], holder: Caller) -> None:
        pace = self._paces.setdefault(holder.user.id, Pace())
        if route.method.cardinality.server_streaming:
            await self._answer_with_stream(route, stream, holder, pace)
            return
        async with self._queues[route.handler.reads].turn((holder.user.id, route.path)):
            response = await self._respond(route, stream, holder, pace)
            if len(response.data) > _SMALL_BYTES:  # in memory until the client takes it
                await send(stream, response)
                return
        await send(stream, response)

    async def _respond(self, route: Route, stream: Stream[Any, Any], holder: Caller, pace: Pace) -> Encoded:
        call, request = await self._begin(route, stream, holder, pace)
        task = asyncio.current_task()
        call = replace(call, is_heard=lambda: task not in self._unheard)
        with self._finishing(route), self._noting_failure(route, call), containing(stream):
            return encode(stream, await route.handler.function(call, request))

    async def _answer_with_stream(self, route: Route, stream: Stream[Any, Any], holder: Caller, pace: Pace) -> None:
        call, request = await self._begin(route, stream, holder, pace)

        async def pause() -> None:
            """Wait for a step and for room: many streams may wait for the same room in the connection's window."""
            await pace.step()
            while not has_room(stream):
                await wait_for_room(stream)
                await pace.step()

        def room() -> int:
            """Return how many bytes to prepare next, such that all streams of a user together stay within a limit."""
            return min(room_of(stream), _STREAMS_BYTES // self._meter.streams_of(holder.user.id))

        started = route.handler.function(replace(call, room=room, pause=pause), request)
        call = replace(call, job=None)  # a large job is not kept for as long as the stream

        def check() -> None:
            if call.job_id is not None and changed.is_gone:
                raise JobNotFound(call.job_id)
            if not self._might_begin(route, call, holder):
                self._decide(route, request, self._act(holder, stream))

        checks = self._checks.setdefault(holder.user.id, Pace())
        with self._watch(call) as changed, self._noting_failure(route, call), containing(stream):
            async with while_passing(check, changed, checks.step), contextlib.aclosing(started) as responses:
                await wait_for_room(stream)
                async for response in responses:
                    await send(stream, response)
                    await wait_for_room(stream)

    async def _begin(self, route: Route, stream: Stream[Any, Any], holder: Caller, pace: Pace) -> tuple[Call, Any]:
        """Receive a request and decide on it."""
        await pace.step()
        caller = self._act(holder, stream)
        request = await self._receive(stream, holder.user.id)
        route.handler.check_lengths(request)
        return replace(self._decide(route, request, caller), pause=pace.step), request

    @contextlib.contextmanager
    def _finishing(self, route: Route) -> Iterator[None]:
        """Finish and audit what the current task changes, even if no client waits for it any more.

        Raises:
            StreamTerminatedError: nobody does.
        """
        task = asyncio.current_task()
        if task is None or route.handler.reads:
            yield
            return
        self._changing.add(task)
        try:
            yield
        finally:
            self._changing.remove(task)
        if task in self._unheard:
            raise StreamTerminatedError("the client has gone")

    def _noting_failure(self, route: Route, call: Call) -> contextlib.AbstractContextManager[None]:
        """Audit the failure of a permitted call that changes something."""
        if route.handler.reads:
            return contextlib.nullcontext()
        return call.caller.noting_failure(route.handler.right, call.decided_on)

    @contextlib.contextmanager
    def _watch(self, call: Call) -> Iterator[Change]:
        """Yield an event that is set when the policies or the shares of the job change, or the job is gone."""
        with contextlib.ExitStack() as stack:
            if call.job_id is None:
                changed = Change()
            else:
                changed = stack.enter_context(self._daemon.engine.watch_shares(call.job_id))
            stack.enter_context(self._rights.tell(changed))
            yield changed

    def _might_begin(self, route: Route, call: Call, holder: Caller) -> bool:
        """Return whether a call that is under way would be permitted if it were made now."""
        caller = call.caller
        if caller.actor is not None and not holder.may(IMPERSONATE, self._as_resource(caller.user)).permitted:
            return False
        resource = DAEMON
        if call.job_id is not None:
            resource = to_resource(call.job_id, self._find(call.job_id), self._daemon.users, caller.user)
        return caller.may(route.handler.right, resource).permitted

    def _identify(self, route: Route, stream: Stream[Any, Any]) -> Caller:
        if has_gone(stream):
            raise StreamTerminatedError("the client has gone")
        connection = connection_of(stream)
        identity = self._identities.get(connection)
        if identity is None or identity.trust_domain != self._credentials.trust_domain:
            certificate = stream.peer.cert()
            if certificate is None:
                raise IdentityInvalid("the connection has no client certificate")
            identity = self._identities[connection] = read_identity(certificate, self._credentials.trust_domain)
        host, port = (stream.peer.addr() or ("?", 0))[:2]
        return Caller(identity, None, f"{host}:{port}", route.path, self._rights, self._recorder)

    @contextlib.contextmanager
    def _admit(self, caller: Caller) -> Iterator[None]:
        """Let a call be served for as long as the caller's certificate counts."""
        try:
            with self._credentials.admit(caller.identity):
                yield
        except CertificateRefused as refusal:
            caller.note_refused(str(refusal))
            raise

    def _act(self, caller: Caller, stream: Stream[Any, Any]) -> Caller:
        """Return whom a call is made for."""
        names = stream.metadata.getall(USERNAME, []) if stream.metadata else []
        if not names:
            return caller
        name = unquote(str(names[0]))
        if len(names) > 1 or not 0 < len(name) <= LONGEST_NAME or not str(names[0]).isascii():
            problem = f"must be given once, percent-encoded, with 1 to {LONGEST_NAME} characters"
            raise InvalidArgument(USERNAME, problem)
        if name in (caller.user.id, caller.user.name):
            return caller
        user, ids = User("", name), list[str]()
        if caller.has(IMPERSONATE):
            try:
                user = self._daemon.users.find(name)
            except UserUnknown as error:  # raised below, for callers who may act for any user
                ids = [*error.ids]
        resource = self._as_resource(user)
        if not caller.decide(IMPERSONATE, resource, {"name": name}):
            raise caller.refusal(IMPERSONATE, resource, name)
        if not user.id:  # not looked up again: the decision would not be about a user who is found now
            raise UserUnknown(name, ids)
        return caller.acting_for(user)

    def _as_resource(self, user: User) -> Resource:
        return Resource(On.USER, user.id, owner=user, roles=self._rights.roles_of(user))

    def _decide(self, route: Route, request: Any, caller: Caller) -> Call:
        """Decide whether a call may be made; return what its handler needs if so."""
        right = route.handler.right
        details = {"request": dict(route.handler.audit(request))}
        job_id = getattr(request, "job_id", None)
        if job_id is None:
            if not caller.decide(right, DAEMON, details, looks=route.handler.reads):
                raise caller.refusal(right, DAEMON)
            return Call(self._daemon, caller, None)
        job_id = parse_job_id(job_id)
        found = self._find(job_id)
        resource = to_resource(job_id, found, self._daemon.users, caller.user)
        if not caller.decide(right, resource, details, looks=route.handler.reads):
            # What the certificate is not good for does not depend on the job.
            if not caller.has(right) or caller.may(SEE, resource).permitted:
                raise caller.refusal(right, resource)
            raise JobNotFound(job_id)
        if found is None:
            raise JobNotFound(job_id)
        try:
            return Call(self._daemon, caller, job_id, self._daemon.engine.status_of(found), resource=resource)
        except SpoolCorrupt as error:
            return Call(self._daemon, caller, job_id, damage=error, resource=resource)

    def _find(self, job_id: str) -> Found | None:
        """Find a job; None for one that is not there, on which a decision is made all the same."""
        try:
            return self._daemon.engine.find(job_id)
        except JobNotFound:
            return None

    async def _receive(self, stream: Stream[Any, Any], user_id: str) -> Any:
        try:
            return await receive(stream, self._meter, user_id)
        except (GRPCError, StreamTerminatedError, MemoryError, DaemonError, InvalidArgument):
            raise
        except Exception as error:  # whatever betterproto2 and grpclib raise for bytes that are no message
            raise InvalidArgument("request", f"cannot be decoded: {str(error) or type(error).__name__}") from error


def _hear(call: asyncio.Task[None]) -> None:
    """Mark the exception of a call as retrieved: its client may have gone. The task then keeps nothing alive by it."""
    with contextlib.suppress(BaseException):
        call.exception()
