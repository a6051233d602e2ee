"""WhoAmI: tell the caller who the daemon takes it for."""

from worker_api.worker.v1 import WhoAmIRequest, WhoAmIResponse, WorkerServiceBase

from workerd.access.caller import Caller
from workerd.access.policy import DAEMON, RUN_AS, SPAWN, On, Resource
from workerd.handler import Call, handles
from workerd.translate import to_user


@handles(WorkerServiceBase, "WhoAmI", right="whoami", reads=True)
async def whoami(call: Call, request: WhoAmIRequest) -> WhoAmIResponse:  # noqa: ARG001
    """Describe the caller."""
    caller = call.caller
    return WhoAmIResponse(
        user=to_user(caller.user),
        spiffe_id=call.identity.spiffe_id,
        rights=[right for right in sorted(caller.rights.known) if _has(caller, right)],
        certificate_expires_at=call.identity.expires_at,
        roles=sorted(caller.rights.roles_of(caller.user)),
        acting=None if caller.actor is None else to_user(caller.actor),
        run_as=_account_for_jobs(call),
    )


def _account_for_jobs(call: Call) -> str:
    """Return the account that jobs of the caller run as by default; empty if the caller may start none as it."""
    account = call.daemon.accounts.effective(call.caller.user)
    may_start = call.caller.may(SPAWN, DAEMON).permitted and call.caller.may(RUN_AS, account).permitted
    return account.id if may_start else ""


def _has(caller: Caller, right: str) -> bool:
    """Tell whether somebody has a right on jobs of their own, or where no job is meant."""
    own = Resource(On.JOB, owner=caller.user)
    return any(caller.may(right, resource).permitted for resource in (own, DAEMON))
