"""The gate: what every call passes on its way to a handler.

identity (off the certificate, which still counts) → request (decoded) → job (named by `job_id`) → policy → handler →
response, and whatever goes wrong on that way becomes a status with a reason. Nothing that a handler raises reaches
grpclib raw.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

import structlog
from grpclib.const import Handler as Method
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream

from pki.errors import IdentityInvalid
from pki.identity import Identity, read_identity
from workerd.credentials import Credentials
from workerd.engine.engine import Engine
from workerd.engine.errors import InvalidArgument, JobNotFound
from workerd.engine.job import Job
from workerd.errors import NotPermitted, ShuttingDown, to_grpc
from workerd.handler import Call
from workerd.registry import Route
from workerd.transport import bound_request, send

log = structlog.get_logger()


class Gate:
    """One grpclib service that is composed of all handlers.

    Args:
        credentials: who callers may be.
        grace_seconds: the default between SIGTERM and SIGKILL.
    """

    def __init__(
        self, engine: Engine, routes: Mapping[str, Route], credentials: Credentials, *, grace_seconds: float
    ) -> None:
        self._engine = engine
        self._routes = routes
        self._rights = frozenset(route.handler.right for route in routes.values())
        self._credentials = credentials
        self._grace_seconds = grace_seconds
        # The task that answers a call, as grpclib made it, with the one that does the work.
        self._calls: dict[asyncio.Task[Any], asyncio.Task[None]] = {}
        self._closing = False

    def __mapping__(self) -> dict[str, Method]:
        """Tell grpclib which function serves which path."""
        return {path: self._method(route) for path, route in self._routes.items()}

    async def wait_idle(self, timeout_seconds: float) -> None:
        """Wait until the calls that are under way have come to their own end.

        Args:
            timeout_seconds: how long to wait for clients that take their time.
        """
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_seconds)

    async def close(self, timeout_seconds: float) -> None:
        """End the calls that are under way, and those that still come, with UNAVAILABLE.

        Args:
            timeout_seconds: how long to wait for clients that take nothing.
        """
        self._closing = True
        for call in self._calls.values():
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_seconds)

    def _method(self, route: Route) -> Method:
        async def serve(stream: Stream[Any, Any]) -> None:
            answering = asyncio.current_task()
            if answering is None:
                raise AssertionError("a call is served outside of any task")
            # A task of its own: only `close` cancels this one, only grpclib the one around it.
            call = asyncio.create_task(self._serve(route, stream))
            self._calls[answering] = call
            answering.add_done_callback(self._calls.pop)
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError:  # the client has gone, just when the call came to its end perhaps
                call.cancel()
                await asyncio.wait([call])
                if not call.cancelled():
                    call.exception()  # nobody is left to be told
                raise
            if call.cancelled():
                raise to_grpc(ShuttingDown())
            call.result()

        return Method(serve, route.method.cardinality, route.method.request_type, route.method.reply_type)

    async def _serve(self, route: Route, stream: Stream[Any, Any]) -> None:
        try:
            if self._closing:
                raise ShuttingDown
            identity = self._identify(stream)
            with self._credentials.admit(identity):
                await self._answer(route, stream, identity)
        except (GRPCError, StreamTerminatedError):
            raise
        except Exception as error:
            answer = to_grpc(error)
            if answer.status is Status.INTERNAL:
                log.exception("a call failed", rpc=route.path)
            elif answer.status is Status.RESOURCE_EXHAUSTED:
                log.warning("a call was turned away", rpc=route.path, problem=answer.message)
            raise answer from error

    async def _answer(self, route: Route, stream: Stream[Any, Any], identity: Identity) -> None:
        request = await _receive(stream)
        if identity.rights is not None and route.handler.right not in identity.rights:
            raise NotPermitted(route.handler.right)
        job = self._find_job(request)
        if job is not None and job.spec.owner.id != identity.user_id:
            # Another user's job does not exist.
            raise JobNotFound(job.id)
        rights = self._rights if identity.rights is None else self._rights & identity.rights
        call = Call(self._engine, identity, rights, job, self._grace_seconds, self._credentials._folder, self._rights)
        if route.method.cardinality.server_streaming:
            async with contextlib.aclosing(route.handler.function(call, request)) as responses:
                async for response in responses:
                    await send(stream, response)
        else:
            await send(stream, await route.handler.function(call, request))

    def _identify(self, stream: Stream[Any, Any]) -> Identity:
        certificate = stream.peer.cert()
        if certificate is None:
            raise IdentityInvalid("the connection has no client certificate")
        return read_identity(certificate, self._credentials.trust_domain)

    def _find_job(self, request: Any) -> Job | None:
        job_id = getattr(request, "job_id", None)
        return None if job_id is None else self._engine.status(job_id)


async def _receive(stream: Stream[Any, Any]) -> Any:
    bound_request(stream)
    try:
        request = await stream.recv_message()
    except (GRPCError, StreamTerminatedError, MemoryError):
        raise
    except Exception as error:  # whatever betterproto2 and grpclib raise for bytes that are no message
        raise InvalidArgument("request", f"cannot be decoded: {str(error) or type(error).__name__}") from error
    if request is None:
        raise InvalidArgument("request", "is missing")
    return request
