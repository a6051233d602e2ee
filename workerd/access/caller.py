"""Whoever makes a call: whom it is made for, on whose certificate, from where, and what they may do.

Every decision is made here, and is in the audit trail before anything comes of it.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from grpclib.exceptions import GRPCError, StreamTerminatedError
from worker_api.worker.v1 import ErrorDetail

from pki.identity import Identity
from workerd.access.policy import DAEMON, RUN_AS, SPAWN, Decision, On, Resource
from workerd.access.recorder import Recorder
from workerd.access.rights import Rights
from workerd.engine.job import User
from workerd.errors import AuditFailed, NotPermitted, to_grpc

IMPERSONATE = "impersonate"
SEE = "status"
"""The right that makes a job one that is known to be there."""

ADMIN = "admin"
_MAKES_ROOM = ("stop", "remove")

NOT_IN_CERTIFICATE = Decision(False, ("certificate",))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        identity: the certificate's, with the user whom the call is made for.
        actor: the certificate's user, where that is another; None otherwise.
        origin: the address that the call comes from.
        rpc: what is called.
    """

    identity: Identity
    actor: User | None
    origin: str
    rpc: str
    rights: Rights
    recorder: Recorder

    @property
    def user(self) -> User:
        """Whom the call is made for."""
        return User(self.identity.user_id, self.identity.name)

    def acting_for(self, user: User) -> "Caller":
        """Give the same caller, acting for another user. Whether that is permitted is not asked here."""
        identity = replace(self.identity, user_id=user.id, name=user.name)
        return replace(self, identity=identity, actor=self.user)

    def has(self, right: str, resource: Resource = DAEMON) -> bool:
        """Return whether the certificate is good for a right, whatever the policies say.

        A certificate that is good for `spawn` is good for `run-as` on the default account.
        """
        needed = SPAWN if right == RUN_AS and resource.is_default else right
        return self.identity.rights is None or not self.identity.rights.isdisjoint((needed, right))

    def may(self, right: str, resource: Resource) -> Decision:
        """Decide, for what is only looked at: nothing is written down."""
        if not self.has(right, resource):
            return NOT_IN_CERTIFICATE
        return self.rights.decide(self.user, right, resource, acted_for=self.actor is not None)

    def may_reach_any(self, right: str) -> bool:
        """Return whether the caller might have a right as `Rights.may_reach_any` does."""
        return self.has(right) and self.rights.may_reach_any(self.user, right, acted_for=self.actor is not None)

    def decide(
        self, right: str, resource: Resource, details: Mapping[str, Any] | None = None, *, looks: bool = False
    ) -> bool:
        """Decide, and write it down.

        Args:
            details: what else belongs to the decision.
            looks: whether what is decided on changes nothing.

        Raises:
            AuditFailed: it could not be written; nothing may come of it then.
        """
        decision = self.may(right, resource)
        event = self._event(
            "decision",
            action=right,
            **_describe(resource),
            **(details or {}),
            verdict="permit" if decision.permitted else "deny",
            policies=decision.policies,
        )
        if looks or not decision.permitted:
            self.recorder.record_some(self.actor or self.user, event)
        else:
            urgent = right in _MAKES_ROOM and ADMIN in self.rights.roles_of(self.user)
            self.recorder.record(event, urgent=urgent)
        return decision.permitted

    def authorize(self, right: str, resource: Resource) -> None:
        """Go on only if the caller has a right.

        Raises:
            NotPermitted: the caller has not.
            AuditFailed: it could not be written down.
        """
        if not self.decide(right, resource):
            raise self.refusal(right, resource)

    def require_in_certificate(self, right: str, resource: Resource) -> None:
        """Go on only if the certificate is good for a right that is to be handed on, whatever the policies say of it.

        Raises:
            NotPermitted: it is not, and that is in the audit trail.
            AuditFailed: it could not be written down.
        """
        if not self.has(right):
            self.authorize(right, resource)

    def refusal(self, right: str, resource: Resource, named: str = "") -> NotPermitted:
        """Say that the caller lacks a right on what they may know of, and what to do.

        Args:
            named: what the caller called the user who is meant; they need not know of another name.
        """
        if self.identity.rights is not None and not self.has(right, resource):
            rights = ", ".join(sorted(self.identity.rights))
            # Nothing of the resource: what the certificate is not good for does not depend on it.
            return NotPermitted(right, advice=f"your certificate is good for {rights} only: present your full one")
        owner = resource.owner
        match resource.on:
            case On.JOB if owner is not None and owner.id == self.user.id:
                advice = f"`ExplainDecision(right={right}, job_id={resource.id})` tells which policy denies it"
                return NotPermitted(right, advice=advice)
            case On.JOB if owner is not None and owner.id:
                return NotPermitted(right, advice=self._ask(owner, right, resource) or self._find_out())
            case On.DAEMON if self.may(right, Resource(On.JOB, owner=self.user)).permitted:
                advice = "you have it on jobs of yours, and whoever runs the daemon can give you more"
                return NotPermitted(right, " where no job is named", advice=advice)
            case On.JOB | On.DAEMON:
                return NotPermitted(right, advice=self._find_out())
            case On.USER:
                advice = "leave `workerd-username` out to call for yourself, or present a certificate of theirs"
                return NotPermitted(right, f" {named or resource.id}", advice=advice)
            case On.ACCOUNT if resource.is_default:
                advice = "name another account in `run_as`, or have whoever runs the daemon permit it in its policies"
                return NotPermitted(right, f" {resource.id}, which your jobs run as", advice=advice)
            case On.ACCOUNT:
                advice = "leave `run_as` out, or have whoever runs the daemon permit it in its policies"
                return NotPermitted(right, f" {resource.id}", advice=advice)

    @contextlib.contextmanager
    def noting_failure(self, right: str, resources: Iterable[Resource]) -> Iterator[None]:
        """Audit the failure of a permitted call: its status and reason, and nothing of the request.

        Args:
            resources: those that were decided on; they are read when the call fails.

        Raises:
            AuditFailed: it could not be written.
        """
        try:
            yield
        except (AuditFailed, StreamTerminatedError):  # nothing can be written; the client has gone
            raise
        except Exception as error:
            answer = error if isinstance(error, GRPCError) else to_grpc(error)
            reason = next((each.reason.name for each in answer.details or () if isinstance(each, ErrorDetail)), "")
            about = {name: value for each in resources for name, value in _describe(each).items()}
            self.note("failed", action=right, **about, status=answer.status.name, reason=reason)
            raise

    def note(self, event: str, **fields: Any) -> None:
        """Write down an event that this call brings about.

        Raises:
            AuditFailed: it could not be written.
        """
        self.recorder.record(self._event(event, **fields))

    def note_refused(self, reason: str) -> None:
        """Write down that this call is refused.

        Raises:
            AuditFailed: it could not be written.
        """
        self.recorder.record_some(self.actor or self.user, self._event("refused", reason=reason))

    def _event(self, event: str, **fields: Any) -> dict[str, Any]:
        user, actor = self.user, self.actor
        return {
            "event": event,
            "user": {"id": user.id, "name": user.name},
            **({} if actor is None else {"actor": {"id": actor.id, "name": actor.name}}),
            "from": self.origin,
            "serial": self.identity.serial,
            "rpc": self.rpc,
            **fields,
        }

    def _find_out(self) -> str:
        """Say how to find out which rights one has, and who gives others."""
        gives = "whoever runs the daemon gives rights"
        return f"`WhoAmI()` shows yours, and {gives}" if self.may("whoami", DAEMON).permitted else gives

    def _ask(self, owner: User, right: str, resource: Resource) -> str:
        """Say what may be asked of a job's owner, as policies have it; nothing if nothing comes of it."""
        shared = replace(resource, shares=resource.shares | {(self.user.id, right)})
        can_do_it = self.rights.decide(owner, right, resource).permitted
        can_let_do_it = self.rights.decide(owner, "share", resource).permitted and self.may(right, shared).permitted
        match can_do_it, can_let_do_it:
            case True, True:
                return f"the job is {owner.name}'s, who can do it, or let you with `Share()`"
            case True, False:
                return f"the job is {owner.name}'s, who can do it, and cannot give you this right by sharing the job"
            case False, True:
                return f"the job is {owner.name}'s, who can let you with `Share()`"
            case _:
                return ""


def _describe(resource: Resource) -> dict[str, Any]:
    """Name what a decision is about, as the audit trail has it; the daemon itself needs no name."""
    match resource.on:
        case On.JOB:
            return {"job_id": resource.id}
        case On.ACCOUNT:
            return {"account": resource.id}
        case On.USER:
            other = resource.owner or User(resource.id, "")
            return {"other_user": {"id": other.id, "name": other.name}}
        case On.DAEMON:
            return {}
