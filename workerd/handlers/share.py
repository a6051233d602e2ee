"""Share: give another user rights on a job, or take them back."""

from typing import Any

import worker_api.worker.v1 as api
from worker_api.worker.v1 import ShareRequest, ShareResponse, WorkerServiceBase

from workerd.access.caller import IMPERSONATE, Caller
from workerd.access.policy import On, Resource
from workerd.access.users import LONGEST_NAME
from workerd.engine.errors import InvalidArgument, quote
from workerd.engine.job import Share, User
from workerd.handler import MOST_RIGHTS, Call, handles
from workerd.translate import to_user


def _describe(request: ShareRequest) -> dict[str, Any]:
    return {"with": request.user, "rights": list(request.rights)}


@handles(
    WorkerServiceBase, "Share", right="share", audit=_describe, longest={"user": LONGEST_NAME, "rights": MOST_RIGHTS}
)
async def share(call: Call, request: ShareRequest) -> ShareResponse:
    """Set what one user may do with the job, and return with whom it is shared.

    The answer is the same whether a name is that of a user or not.
    """
    job_id = call.require_job().id
    known = call.caller.rights.known
    for right in request.rights:
        if right not in known or On.JOB not in known[right].on:
            on_jobs = ", ".join(sorted(name for name, each in known.items() if On.JOB in each.on))
            raise InvalidArgument("rights", f"cannot hold {quote(right)}: what can be done to a job is {on_jobs}")
        # Or it would outlive a narrowed certificate, in somebody else's hands.
        call.caller.require_in_certificate(right, call.resource)
    if not request.user:
        if request.rights:
            raise InvalidArgument("user", "is empty: say whom the rights are for")
        shares = call.engine.shares(job_id)
    else:
        users = call.daemon.users
        shares = await call.engine.share(job_id, users.meant(request.user), request.rights, users.bind)
    described = []
    for each, user in zip(shares, call.daemon.users.renamed(each.user for each in shares), strict=True):
        await call.pause()
        described.append(_describe_share(call.caller, each, user))
    return ShareResponse(shares=described)


def _describe_share(caller: Caller, share: Share, known: User) -> api.Share:
    """Describe a share. Only callers who may act for the user see more than the text that the job was shared with.

    The same is done whether the user is known or not, so the time that it takes tells nothing.

    Args:
        known: the user of the share, by their present name if they have been here.
    """
    given = share.user
    resource = Resource(On.USER, known.id, owner=known, roles=caller.rights.roles_of(known))
    may_know = caller.may(IMPERSONATE, resource).permitted or known.id == caller.user.id
    user = known if may_know else given if given.id == given.name else User("", given.name)
    return api.Share(user=to_user(user), rights=list(share.rights))
