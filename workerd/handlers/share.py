"""Share: give another user rights on a job, or take them back."""

from typing import Any

import worker_api.worker.v1 as api
from worker_api.worker.v1 import ShareRequest, ShareResponse, WorkerServiceBase

from workerd.access.policy import On
from workerd.engine.errors import InvalidArgument
from workerd.handler import Call, handles
from workerd.translate import to_user


def _describe(request: ShareRequest) -> dict[str, Any]:
    return {"with": request.user, "rights": list(request.rights)}


@handles(WorkerServiceBase, "Share", right="share", audit=_describe)
async def share(call: Call, request: ShareRequest) -> ShareResponse:
    """Set what one user may do with the job, and tell with whom it is shared."""
    job_id = call.require_job().id
    known = call.caller.rights.known
    for right in request.rights:
        if right not in known or On.JOB not in known[right].on:
            on_jobs = ", ".join(sorted(name for name, each in known.items() if On.JOB in each.on))
            raise InvalidArgument("rights", f"cannot hold {right!r}: what can be done to a job is {on_jobs}")
        # Or it would outlive a narrowed certificate, in somebody else's hands.
        call.caller.require_in_certificate(right, call.resource)
    if not request.user:
        if request.rights:
            raise InvalidArgument("user", "is empty: say whom the rights are for")
        shares = call.engine.shares(job_id)
    else:
        shares = await call.engine.share(job_id, call.daemon.users.find(request.user), request.rights)
    return ShareResponse(shares=[api.Share(user=to_user(each.user), rights=list(each.rights)) for each in shares])
