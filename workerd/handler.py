"""What a handler is: the function behind one RPC, with the right that its caller needs.

A handler is declared with `handles` and offered through the entry-point group `workerd.handlers`:

    @handles(WorkerServiceBase, "Stop", right="stop")
    async def stop(call: Call, request: StopRequest) -> StopResponse: ...

An RPC that answers with one message is an `async def`; one that answers with a stream is an `async def` that yields.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from grpclib.const import Handler as Method

from pki.identity import Identity
from pki.store import PkiFolder
from workerd.engine.engine import Engine
from workerd.engine.job import Job


class Service(Protocol):
    """A service as betterproto2 generates it: its routes, with cardinality and message types."""

    def __mapping__(self) -> dict[str, Method]: ...


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler has besides its request.

    Attributes:
        identity: the caller.
        rights: all rights that any handler asks for and that the caller has on its own jobs.
        job: the job that the request's `job_id` names, on which the caller has the handler's right; None when the
            request has no such field.
        grace_seconds: between SIGTERM and SIGKILL when the caller says nothing of it.
        pki: the folder of certificates.
        known_rights: all rights there are.
        actor: the user of the certificate, where the call is made for another; None otherwise.
    """

    engine: Engine
    identity: Identity
    rights: frozenset[str]
    job: Job | None
    grace_seconds: float
    pki: PkiFolder
    known_rights: frozenset[str]
    actor: Identity | None = None

    def require_job(self) -> Job:
        """Give the job that the request names."""
        if self.job is None:
            raise TypeError("the request of this RPC has no field job_id")
        return self.job


@dataclass(frozen=True, slots=True)
class Handler:
    """The function behind one RPC.

    Attributes:
        service: the generated base class of the service that the RPC belongs to.
        rpc: the RPC's name in that service.
        right: what the caller must be allowed to do, one word.
    """

    service: type[Service]
    rpc: str
    right: str
    function: Callable[..., Any]


def handles(service: type[Service], rpc: str, *, right: str) -> Callable[[Callable[..., Any]], Handler]:
    """Declare that the decorated function serves an RPC, for callers who have a right."""
    return lambda function: Handler(service, rpc, right, function)
