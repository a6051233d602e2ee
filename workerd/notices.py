"""What calls fail with, as the log has it; what may happen any number of times is told once in a while."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import structlog
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from workerd.access.caller import Caller
from workerd.engine.errors import LimitMet
from workerd.errors import AuditFailed, LimitReached

log = structlog.get_logger()
_PAUSE_SECONDS = 60.0


class Notices:
    """Warnings, of which each kind is told at most once a minute, with the number of those that were not.

    Args:
        clock: tells the time in seconds, and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def warn(self, what: str, limit: str, **fields: Any) -> bool:
        """Tell that a limit was met, or count it.

        Args:
            what: happened.
            limit: the name of the limit, which is what tells kinds apart.

        Returns:
            Whether it was told.
        """
        now = self._clock()
        if now - self._told_at.get(limit, now - _PAUSE_SECONDS) < _PAUSE_SECONDS:
            self._untold[limit] = self._untold.get(limit, 0) + 1
            return False
        self._told_at[limit] = now
        log.warning(what, limit=limit, untold_before=self._untold.pop(limit, 0), **fields)
        return True

    def tell_failure(self, error: Exception, answer: GRPCError, rpc: str, caller: Caller | None) -> None:
        """Tell what the operator should know of a call that failed.

        Args:
            error: what it failed with, which is being handled.
            answer: what its caller is told.
            caller: None if it is not known who it is.
        """
        match error:
            case LimitReached(limit=limit) | LimitMet(limit=limit) if caller is not None:
                user = caller.user.name
                if self.warn("calls are turned away", limit, user=user, rpc=rpc, latest=answer.message):
                    with contextlib.suppress(AuditFailed):  # the call is refused anyway
                        caller.note("refused", reason=answer.message)
            case _ if answer.status is Status.INTERNAL:
                log.exception("a call failed", rpc=rpc)
            case _ if answer.status is Status.RESOURCE_EXHAUSTED:
                log.warning("a call was turned away", rpc=rpc, problem=answer.message)
