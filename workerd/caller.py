"""Whoever makes a call: whom it is made for, on whose certificate, from where, and what they may do.

Every decision is made here, and is in the audit trail before anything comes of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pki.identity import Identity
from workerd.engine.job import User
from workerd.errors import NotPermitted
from workerd.policy import Decision, On, Resource
from workerd.rights import Rights

Record = Callable[[Mapping[str, Any]], None]
"""Writes an event into the audit trail, or raises AuditFailed."""

IMPERSONATE = "impersonate"
SEE = "status"
"""The right that makes a job one that is known to be there."""

_NOT_IN_CERTIFICATE = Decision(False, ("certificate",))


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
    record: Record

    @property
    def user(self) -> User:
        """Whom the call is made for."""
        return User(self.identity.user_id, self.identity.name)

    def acting_for(self, user: User) -> "Caller":
        """Give the same caller, acting for another user. Whether that is permitted is not asked here."""
        identity = replace(self.identity, user_id=user.id, name=user.name)
        return replace(self, identity=identity, actor=self.user)

    def has(self, right: str) -> bool:
        """Tell whether the certificate is good for a right, whatever the policies say."""
        return self.identity.rights is None or right in self.identity.rights

    def may(self, right: str, resource: Resource) -> Decision:
        """Decide, for what is only looked at: nothing is written down."""
        return self.rights.decide(self.user, right, resource) if self.has(right) else _NOT_IN_CERTIFICATE

    def decide(self, right: str, resource: Resource, details: Mapping[str, Any] | None = None) -> bool:
        """Decide, and write it down.

        Args:
            details: what else belongs to the decision.

        Raises:
            AuditFailed: it could not be written; nothing may come of it then.
        """
        decision = self.may(right, resource)
        self.note(
            "decision",
            action=right,
            **_describe(resource),
            **(details or {}),
            verdict="permit" if decision.permitted else "deny",
            policies=decision.policies,
        )
        return decision.permitted

    def authorize(self, right: str, resource: Resource) -> None:
        """Go on only if the caller has a right.

        Raises:
            NotPermitted: the caller has not.
            AuditFailed: it could not be written down.
        """
        if not self.decide(right, resource):
            raise NotPermitted(right, on=f" {resource.id}" if resource.on is On.ACCOUNT else "")

    def note(self, event: str, **fields: Any) -> None:
        """Write down an event that this call brings about.

        Raises:
            AuditFailed: it could not be written.
        """
        user, actor = self.user, self.actor
        self.record(
            {
                "event": event,
                "user": {"id": user.id, "name": user.name},
                **({} if actor is None else {"actor": {"id": actor.id, "name": actor.name}}),
                "from": self.origin,
                "serial": self.identity.serial,
                "rpc": self.rpc,
                **fields,
            }
        )


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
