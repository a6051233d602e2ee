"""ExplainDecision: tell whether somebody might do something, and which policies decide it."""

import re
from collections.abc import Collection
from typing import Any

from worker_api.worker.v1 import ExplainDecisionRequest, ExplainDecisionResponse, WorkerServiceBase

from workerd.access.caller import NOT_IN_CERTIFICATE, Caller
from workerd.access.policy import DAEMON, On, Policies, Principal, Resource
from workerd.engine.errors import InvalidArgument
from workerd.errors import NotPermitted, PolicyInvalid
from workerd.handler import Call, handles
from workerd.translate import to_user

_MAX_CHARACTERS = 1 << 14  # of policies, which the daemon compiles while all others wait
_STANDARD_INPUT = "stdin"
_NAME = re.compile(r"[^/\0]{1,255}")  # of a file
_HOW = {
    On.JOB: "on a job: name it in `job_id`",
    On.DAEMON: "on the daemon itself: leave `job_id` and `target` out",
    On.USER: "on another user: name them in `target`, and leave `job_id` out",
    On.ACCOUNT: "on a system account: name it in `target`, and leave `job_id` out",
}


def _describe(request: ExplainDecisionRequest) -> dict[str, Any]:
    return {"about": request.user, "right": request.right}


@handles(WorkerServiceBase, "ExplainDecision", right="explain", audit=_describe)
async def explain_decision(call: Call, request: ExplainDecisionRequest) -> ExplainDecisionResponse:
    """Decide as if a user had asked, by the policies in force and those of the request.

    Of a caller who names nobody it is decided as of this call: for another user perhaps, with this certificate.
    """
    caller, rights = call.caller, call.caller.rights
    if request.right not in rights.known:
        known = ", ".join(sorted(rights.known))
        raise InvalidArgument("right", f"{request.right!r} is none that this daemon knows: there are {known}")
    if len(request.policies) > _MAX_CHARACTERS:
        raise InvalidArgument("policies", f"are longer than {_MAX_CHARACTERS} characters")
    if request.policies:  # for what they cost, the right on a job of one's own is not enough
        _authorize_trying(caller)
    policies = _policies(rights.policies, request)
    user = call.daemon.users.find(request.user) if request.user else caller.user
    acted_for = not request.user and caller.actor is not None
    roles = rights.roles_of(user)
    resource = _resource(call, request, rights.known[request.right].on)
    if not request.user and not caller.has(request.right):
        decision = NOT_IN_CERTIFICATE
    else:
        decision = policies.decide(Principal(user, roles, acted_for), request.right, resource)
    return ExplainDecisionResponse(
        permitted=decision.permitted, policies=list(decision.policies), user=to_user(user), roles=sorted(roles)
    )


def _authorize_trying(caller: Caller) -> None:
    """Go on only if the caller may have policies of their own compiled."""
    if not caller.decide("explain", DAEMON):
        advice = "administrators have, by default; about a job of yours you may ask without any"
        raise NotPermitted("explain", " with policies to try", advice=advice)


def _policies(in_force: Policies, request: ExplainDecisionRequest) -> Policies:
    """Add the policies of a request to those in force, or put them in the place of a file of the same name."""
    name = request.policies_name or _STANDARD_INPUT
    if _NAME.fullmatch(name) is None:
        raise InvalidArgument("policies_name", "must be the name of a file without its folder")
    if not request.policies:
        return in_force
    try:
        return in_force.with_added(name, request.policies)
    except PolicyInvalid as error:
        raise InvalidArgument("policies", f"in {name} cannot be used: {error.problem}") from error


def _resource(call: Call, request: ExplainDecisionRequest, on: Collection[On]) -> Resource:
    """Return the resource that the request names."""
    if call.job_id is not None:
        kind = On.JOB
    elif not request.target:
        kind = On.DAEMON
    else:
        kind = On.ACCOUNT if On.ACCOUNT in on else On.USER
    if kind not in on:
        how = "; or ".join(_HOW[each] for each in sorted(on))
        raise InvalidArgument("right", f"{request.right!r} is exercised {how}")
    match kind:
        case On.JOB | On.DAEMON:
            return call.resource
        case On.ACCOUNT:
            return Resource(On.ACCOUNT, request.target)
        case On.USER:
            other = call.daemon.users.find(request.target)
            return Resource(On.USER, other.id, owner=other, roles=call.caller.rights.roles_of(other))
