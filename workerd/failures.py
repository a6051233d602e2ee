"""What becomes of calls that failed: what counts as a fault, and what the operator is told."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Stream

from workerd.access.caller import Caller
from workerd.engine.errors import LimitMet
from workerd.errors import AuditFailed, FramingInvalid, HandlerFaulty, LimitReached
from workerd.network.transport import has_gone, is_open
from workerd.notices import Notices

log = structlog.get_logger()


@contextlib.contextmanager
def containing(stream: Stream[Any, Any]) -> Iterator[None]:
    """Take for a handler's fault what would end the daemon, or the call without a word.

    Raises:
        HandlerFaulty: from what it raised.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        yield
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling() > before:  # somebody wants it so
            raise
        raise HandlerFaulty(error) from error
    except StreamTerminatedError as error:
        if has_gone(stream) or not is_open(stream):
            raise
        raise HandlerFaulty(error) from error  # of a connection of the handler's own
    except Exception:
        raise
    except BaseException as error:
        raise HandlerFaulty(error) from error


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
                    caller.note_refused(answer.message or "")
        case FramingInvalid():
            pass  # the client's mistake, although gRPC says INTERNAL
        case _ if answer.status is Status.INTERNAL:
            log.exception("a call failed", rpc=rpc)
        case _ if answer.status is Status.RESOURCE_EXHAUSTED:
            log.warning("a call was turned away", rpc=rpc, problem=answer.message)
