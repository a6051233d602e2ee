"""What a handler is: the function behind one RPC, with the right that its caller needs.

A handler is declared with `handles` and offered through the entry-point group `workerd.handlers`:

    @handles(WorkerServiceBase, "Stop", right="stop")
    async def stop(call: Call, request: StopRequest) -> StopResponse: ...

An RPC that answers with one message is an `async def`; one that answers with a stream is an `async def` that yields.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from grpclib.const import Handler as Method

from pki.identity import Identity
from pki.store import PkiFolder
from workerd.access.accounts import Accounts
from workerd.access.caller import Caller
from workerd.access.policy import DAEMON, RUN_AS, On, Resource
from workerd.access.users import Users
from workerd.engine.engine import Engine
from workerd.engine.errors import InvalidArgument, SpoolCorrupt
from workerd.engine.job import Job, User
from workerd.engine.reader import CHUNK_BYTES
from workerd.engine.standing import Found
from workerd.engine.threads import Threads

log = structlog.get_logger()
_NOBODY = User("", "")
_SIGN_SECONDS = 30.0
MOST_RIGHTS = 256  # in a request, more than there are with many plugins
LONGEST_RIGHT = 64  # in characters


class Service(Protocol):
    """A service as betterproto2 generates it: its routes, with cardinality and message types."""

    def __mapping__(self) -> dict[str, Method]: ...


@dataclass(frozen=True, slots=True)
class Daemon:
    """What all calls have in common.

    Attributes:
        users: those that have been here.
        pki: the folder of certificates.
        grace_seconds: between SIGTERM and SIGKILL when the caller says nothing of it.
        accounts: the system accounts that jobs run as.
        signing: threads for signing certificates.
    """

    engine: Engine
    users: Users
    pki: PkiFolder
    grace_seconds: float
    accounts: Accounts
    signing: Threads = field(
        default_factory=lambda: Threads("signing a certificate", most=2, limit_seconds=_SIGN_SECONDS)
    )


def to_resource(job_id: str, found: Found | None, users: Users, user: User) -> Resource:
    """Return a job to decide on, with the shares of its owner and of one user; a missing job has no owner.

    Args:
        user: whose rights on the job are to be decided.
    """
    if found is None:
        return Resource(On.JOB, job_id, _NOBODY)
    return Resource(On.JOB, job_id, found.owner, users.granted(found.shares, {found.owner.id, user.id} - {""}))


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler has besides its request.

    Attributes:
        caller: who calls, and what they may do.
        job_id: of the job that the request names, on which the caller has the handler's right; None when the request
            has no field `job_id`.
        job: that job; None also when its files are damaged.
        damage: what is wrong with them then.
        resource: the same for further decisions: that job, or the daemon.
        room: tells how many bytes are worth preparing next for a client that is answered with a stream.
        is_heard: return whether the client still waits for the answer.
        further: the resources of further decisions.
        pause: awaited between the parts of long work, so that other users' calls are answered.
    """

    daemon: Daemon
    caller: Caller
    job_id: str | None
    job: Job | None = None
    damage: SpoolCorrupt | None = None
    resource: Resource = DAEMON
    room: Callable[[], int] = lambda: CHUNK_BYTES
    is_heard: Callable[[], bool] = lambda: True
    pause: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)
    further: list[Resource] = field(default_factory=list)

    @property
    def decided_on(self) -> Iterator[Resource]:
        """Iterate over the resources that were decided on."""
        yield self.resource
        yield from self.further

    @property
    def engine(self) -> Engine:
        """What runs jobs."""
        return self.daemon.engine

    @property
    def identity(self) -> Identity:
        """Whom the call is made for: the user of the certificate, unless somebody acts for another."""
        return self.caller.identity

    def require_job(self) -> Job:
        """Return the job that the request names.

        Raises:
            SpoolCorrupt: its files are damaged.
        """
        if self.damage is not None:
            raise self.damage
        if self.job is None:
            raise TypeError("the request of this RPC has no field job_id")
        return self.job

    def require_job_id(self) -> str:
        """Return the id of the job that the request names, for what can be done to a damaged one, too."""
        if self.job_id is None:
            raise TypeError("the request of this RPC has no field job_id")
        return self.job_id

    def authorize(self, right: str, resource: Resource | None = None) -> None:
        """Go on only if the caller has one of the handler's further rights; the decision goes into the audit trail.

        Args:
            resource: what it is for; None for the job that the request names, or the daemon.

        Raises:
            NotPermitted: the caller has not.
            AuditFailed: the decision could not be written down.
        """
        resource = resource or self.resource
        self.further.append(resource)
        self.caller.authorize(right, resource)

    def authorize_account(self, named: str = "") -> str:
        """Require `run-as` on the account that a job of the caller would run as, and return that account's name.

        Args:
            named: the account that the request names; empty for the caller's default one.

        Raises:
            NotPermitted: it may not.
            AuditFailed: the decision could not be written down.
        """
        account = self.daemon.accounts.effective(self.caller.user, named)
        self.authorize(RUN_AS, account)
        return account.id


@dataclass(frozen=True, slots=True)
class Handler:
    """The function behind one RPC.

    Attributes:
        service: the generated base class of the service that the RPC belongs to.
        rpc: the RPC's name in that service.
        right: what the caller must be allowed to do, one word.
        further: rights that the handler asks for by itself, each with what it can be exercised on.
        reads: whether the right changes nothing.
        audit: gives what of a request belongs into the audit trail.
        longest: how many characters, bytes or items fields of a request may have, checked before anything is decided.
    """

    service: type[Service]
    rpc: str
    right: str
    function: Callable[..., Any]
    further: Mapping[str, On] = field(default_factory=dict)
    reads: bool = False
    audit: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    longest: Mapping[str, int] = field(default_factory=dict)

    def check_lengths(self, request: Any) -> None:
        """Check that no field of a request is longer than it may be.

        Raises:
            InvalidArgument: naming the field.
        """
        for name, most in self.longest.items():
            value = getattr(request, name) or ""  # an optional field may be None
            if len(value) > most:
                parts = "characters" if isinstance(value, str) else "bytes" if isinstance(value, bytes) else "items"
                raise InvalidArgument(name, f"is longer than {most} {parts}")


def handles(
    service: type[Service],
    rpc: str,
    *,
    right: str,
    further: Mapping[str, On] | None = None,
    reads: bool = False,
    audit: Callable[[Any], Mapping[str, Any]] = lambda _: {},
    longest: Mapping[str, int] | None = None,
) -> Callable[[Callable[..., Any]], Handler]:
    """Declare that the decorated function serves an RPC, for callers who have a right.

    Args:
        right: one word; policies speak of it as `Action::"word"`.
        further: rights that the function asks for with `Call.authorize`, each with what it can be exercised on.
        reads: whether the right changes nothing: `Action::"Read"` in policies, which viewers have on every job.
        audit: gives what of a request belongs into the audit trail, as JSON has it; secrets do not.
        longest: how many characters, bytes or items fields of the request may have; a longer request is refused.
    """
    return lambda function: Handler(service, rpc, right, function, further or {}, reads, audit, longest or {})
