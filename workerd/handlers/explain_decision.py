"""ExplainDecision: tell whether somebody might do something, and which policies decide it."""

from collections.abc import Collection
from typing import Any

from worker_api.worker.v1 import ExplainDecisionRequest, ExplainDecisionResponse, WorkerServiceBase

from workerd.access.policy import On, Principal, Resource
from workerd.engine.errors import InvalidArgument
from workerd.errors import PolicyInvalid
from workerd.handler import Call, handles
from workerd.translate import to_user

_MAX_POLICIES = 1 << 14
_FILE = "yours"
_IN_WORDS = {On.JOB: "a job", On.DAEMON: "the daemon", On.USER: "another user", On.ACCOUNT: "a system account"}


def _describe(request: ExplainDecisionRequest) -> dict[str, Any]:
    return {"about": request.user, "right": request.right}


@handles(WorkerServiceBase, "ExplainDecision", right="explain", audit=_describe)
async def explain_decision(call: Call, request: ExplainDecisionRequest) -> ExplainDecisionResponse:
    """Decide as if a user had asked, by the policies in force and those of the request."""
    rights = call.caller.rights
    if request.right not in rights.known:
        known = ", ".join(sorted(rights.known))
        raise InvalidArgument("right", f"{request.right!r} is none that this daemon knows: there are {known}")
    if len(request.policies) > _MAX_POLICIES:
        raise InvalidArgument("policies", f"are longer than {_MAX_POLICIES} characters")
    policies = rights.policies
    if request.policies:
        try:
            policies = policies.with_added(_FILE, request.policies)
        except PolicyInvalid as error:
            raise InvalidArgument("policies", f"cannot be used: {error.problem}") from error
    user = call.daemon.users.find(request.user) if request.user else call.caller.user
    roles = rights.roles_of(user)
    resource = _resource(call, request, rights.known[request.right].on)
    decision = policies.decide(Principal(user, roles), request.right, resource)
    return ExplainDecisionResponse(
        permitted=decision.permitted, policies=list(decision.policies), user=to_user(user), roles=sorted(roles)
    )


def _resource(call: Call, request: ExplainDecisionRequest, on: Collection[On]) -> Resource:
    """Find out what it is asked for."""
    if call.job is not None:
        kind = On.JOB
    elif not request.target:
        kind = On.DAEMON
    else:
        kind = On.ACCOUNT if On.ACCOUNT in on else On.USER
    if kind not in on:
        kinds = " or ".join(sorted(_IN_WORDS[each] for each in on))
        raise InvalidArgument("right", f"{request.right!r} is exercised on {kinds}: say which")
    match kind:
        case On.JOB | On.DAEMON:
            return call.resource
        case On.ACCOUNT:
            return Resource(On.ACCOUNT, request.target)
        case On.USER:
            other = call.daemon.users.find(request.target)
            return Resource(On.USER, other.id, owner=other, roles=call.caller.rights.roles_of(other))
