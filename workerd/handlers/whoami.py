"""WhoAmI: tell the caller who the daemon takes it for."""

from worker_api.worker.v1 import WhoAmIRequest, WhoAmIResponse, WorkerServiceBase

from workerd.handler import Call, handles
from workerd.translate import to_user, user_of


@handles(WorkerServiceBase, "WhoAmI", right="whoami")
async def whoami(call: Call, request: WhoAmIRequest) -> WhoAmIResponse:  # noqa: ARG001
    """Describe the caller."""
    return WhoAmIResponse(
        user=to_user(user_of(call.identity)),
        spiffe_id=call.identity.spiffe_id,
        rights=sorted(call.rights),
        certificate_expires_at=call.identity.expires_at,
    )
