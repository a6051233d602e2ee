"""ExplainDecision: tell whether somebody might do something, and which policies decide it."""

import re
from collections.abc import Collection
from typing import Any

from worker_api.worker.v1 import (
    AccountDecision,
    ExplainDecisionRequest,
    ExplainDecisionResponse,
    WorkerServiceBase,
)

from workerd.access.caller import NOT_IN_CERTIFICATE, Caller
from workerd.access.policy import DAEMON, RUN_AS, SPAWN, Decision, On, Policies, Principal, Resource
from workerd.access.users import LONGEST_NAME
from workerd.engine.errors import InvalidArgument, quote
from workerd.engine.job import User
from workerd.engine.request import MAX_LABEL_BYTES
from workerd.errors import NotPermitted, PolicyInvalid
from workerd.handler import LONGEST_RIGHT, Call, handles, to_resource
from workerd.translate import to_user

_MAX_CHARACTERS = 1 << 14  # of policies, which the daemon compiles while all others wait
_STANDARD_INPUT = "stdin"
_NAME = re.compile(r"[^/\0]{1,255}")  # of a file
_HOW = {
    On.JOB: "on a job: name it in `job_id`",
    On.DAEMON: "on the daemon itself: leave `job_id` and `target` out",
    On.USER: "on another user: name them in `target`, and leave `job_id` out",
    On.ACCOUNT: "on a system account: name it in `target`, or leave that out for the default one; leave `job_id` out",
}


def _describe(request: ExplainDecisionRequest) -> dict[str, Any]:
    return {"about": request.user, "right": request.right}


@handles(
    WorkerServiceBase,
    "ExplainDecision",
    right="explain",
    audit=_describe,
    longest={"user": LONGEST_NAME, "right": LONGEST_RIGHT, "target": MAX_LABEL_BYTES},
)
async def explain_decision(call: Call, request: ExplainDecisionRequest) -> ExplainDecisionResponse:
    """Decide as if a user had asked, by the policies in force and those of the request.

    Of a caller who names nobody it is decided as of this call: for another user perhaps, with this certificate.
    """
    caller, rights = call.caller, call.caller.rights
    if request.right not in rights.known:
        known = ", ".join(sorted(rights.known))
        raise InvalidArgument("right", f"{quote(request.right)} is none that this daemon knows: there are {known}")
    if len(request.policies) > _MAX_CHARACTERS:
        raise InvalidArgument("policies", f"are longer than {_MAX_CHARACTERS} characters")
    if request.policies:  # for what they cost, the right on a job of one's own is not enough
        _authorize(caller, "with policies to try")
    policies = _policies(rights.policies, request)
    user = _find(call, request.user) if request.user else caller.user
    acted_for = not request.user and caller.actor is not None
    roles = rights.roles_of(user)
    resource = _resource(call, request, user, rights.known[request.right].on)

    def decide(right: str, resource: Resource) -> Decision:
        if not request.user and not caller.has(right, resource):
            return NOT_IN_CERTIFICATE
        return policies.decide(Principal(user, roles, acted_for), right, resource)

    decision = decide(request.right, resource)
    permitted, account = decision.permitted, None
    if request.right == RUN_AS:
        account = _to_account_decision(resource, decision)
    elif request.right == SPAWN:
        runs_as = call.daemon.accounts.effective(user)
        account = _to_account_decision(runs_as, decide(RUN_AS, runs_as))
        permitted = permitted and account.permitted
    return ExplainDecisionResponse(
        permitted=permitted,
        policies=list(decision.policies),
        user=to_user(user),
        roles=sorted(roles),
        account=account,
    )


def _to_account_decision(account: Resource, decision: Decision) -> AccountDecision:
    return AccountDecision(account=account.id, permitted=decision.permitted, policies=list(decision.policies))


def _authorize(caller: Caller, what: str) -> None:
    """Raise `NotPermitted` unless the caller may ask for more than a decision about themselves."""
    if not caller.decide("explain", DAEMON):
        advice = "administrators have, by default; about yourself and a job of yours you may ask without it"
        raise NotPermitted("explain", f" {what}", advice=advice)


def _find(call: Call, text: str) -> User:
    """Find a user by name or id. To find another user than the caller takes the right `explain` on the daemon."""
    if text in (call.caller.user.id, call.caller.user.name):
        return call.caller.user
    _authorize(call.caller, "decisions about other users")
    return call.daemon.users.find(text)


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


def _resource(call: Call, request: ExplainDecisionRequest, user: User, on: Collection[On]) -> Resource:
    """Return the resource that the request names, or the default account of a user."""
    if call.job_id is not None:
        kind = On.JOB
    elif request.target:
        kind = On.ACCOUNT if On.ACCOUNT in on else On.USER
    else:
        kind = On.ACCOUNT if set(on) == {On.ACCOUNT} else On.DAEMON
    if kind not in on:
        how = "; or ".join(_HOW[each] for each in sorted(on))
        raise InvalidArgument("right", f"{quote(request.right)} is exercised {how}")
    match kind:
        case On.JOB if user.id != call.caller.user.id:  # the call's resource lacks their shares
            job_id = call.require_job_id()
            return to_resource(job_id, call.engine.find(job_id), call.daemon.users, user)
        case On.JOB | On.DAEMON:
            return call.resource
        case On.ACCOUNT:
            return call.daemon.accounts.effective(user, request.target)
        case On.USER:
            other = _find(call, request.target)
            return Resource(On.USER, other.id, owner=other, roles=call.caller.rights.roles_of(other))
