"""What the operator is told of calls that failed."""

import contextlib

import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from workerd.access.caller import Caller
from workerd.engine.errors import LimitMet
from workerd.errors import AuditFailed, LimitReached
from workerd.notices import Notices

log = structlog.get_logger()


def tell_failure(notices: Notices, error: Exception, answer: GRPCError, rpc: str, caller: Caller | None) -> None:
    """Tell what the operator should know of a call that failed.

    Args:
        notices: tells of limits, now and then.
        error: what it failed with, which is being handled.
        answer: what its caller is told.
        caller: None if it is not known who it is.
    """
    match error:
        case LimitReached(limit=limit) | LimitMet(limit=limit) if caller is not None:
            user = caller.user.name
            if notices.warn("calls are turned away", limit, user=user, rpc=rpc, latest=answer.message):
                with contextlib.suppress(AuditFailed):  # the call is refused anyway
                    caller.note("refused", reason=answer.message)
        case _ if answer.status is Status.INTERNAL:
            log.exception("a call failed", rpc=rpc)
        case _ if answer.status is Status.RESOURCE_EXHAUSTED:
            log.warning("a call was turned away", rpc=rpc, problem=answer.message)
