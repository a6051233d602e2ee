"""The rights as they stand: the policies in force, taken up anew when their files change, and the roles of users."""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from workerd.access.following import follow_folder
from workerd.access.policy import DAEMON, RUN_AS, SPAWN, Decision, On, Policies, Principal, Resource, Right
from workerd.access.sources import files_of, missing_from, read_policies
from workerd.access.users import known_by
from workerd.engine.job import User
from workerd.errors import PolicyInvalid, shortage_of

log = structlog.get_logger()
_OF_THE_DAEMON = ("admin", "viewer")
"""The roles that the policies name which come with the daemon; nobody need have them."""


class Rights:
    """Decides by the policies of a folder, as they were when they were last good.

    Args:
        folder: where policies are that are added to the default ones, or take their place; it need not be there, but
            once it was it does not just go.
        roles: the names or ids of the users who have each role.
        known: all rights there are.

    Attributes:
        known: the same.
        policies: those in force.

    Raises:
        PolicyInvalid: there are some that cannot be used.
    """

    def __init__(self, folder: Path, roles: Mapping[str, tuple[str, ...]], known: Mapping[str, Right]) -> None:
        self._folder = folder
        self._roles = roles
        self.known = known
        self._told: set[asyncio.Event] = set()
        self._problem = ""  # that was told last, and still is there
        self._unfinished: set[str] = set()
        self._in_force = read_policies(folder)
        self._was_there = os.path.exists(folder)
        self.policies = self._compile(self._in_force)
        given = {role: list(users) for role, users in sorted(roles.items())}
        log.info("policies are in force", folder=str(folder), files=files_of(self._in_force), roles=given)
        self._warn()

    def roles_of(self, user: User) -> frozenset[str]:
        """Tell which roles a user has."""
        means = frozenset(known_by(user))
        return frozenset(role for role, users in self._roles.items() if not means.isdisjoint(users))

    def decide(self, user: User, right: str, resource: Resource, *, acted_for: bool = False) -> Decision:
        """Decide whether a user may do something.

        Args:
            acted_for: whether somebody else asks for them.
        """
        return self.policies.decide(Principal(user, self.roles_of(user), acted_for), right, resource)

    def may_reach_any(self, user: User, right: str, *, acted_for: bool) -> bool:
        """Return whether a user might have a right on other users' jobs, as `Policies.may_reach_any` does."""
        return self.policies.may_reach_any(Principal(user, self.roles_of(user), acted_for), right)

    @contextlib.contextmanager
    def tell(self, changed: asyncio.Event) -> Iterator[None]:
        """Have an event set whenever other policies come into force."""
        self._told.add(changed)
        try:
            yield
        finally:
            self._told.remove(changed)

    async def follow(self) -> None:
        """Take up policies that change, until cancelled. What is bad is told, and what was good stays."""
        await follow_folder(self._folder, self._look, self._unfinished)

    def _look(self) -> bool:
        """Take up the policies that are there; return whether nothing was lacking for that."""
        try:
            sources = read_policies(
                self._folder, must_be_there=self._was_there, unfinished=self._unfinished, before=self._in_force
            )
            self._was_there = self._was_there or os.path.exists(self._folder)
            is_new = sources != self._in_force
            policies = self._compile(sources) if is_new else self.policies
        except PolicyInvalid as error:
            if str(error) != self._problem:
                log.error("policies were changed and cannot be used; those from before stay", error=str(error))
            self._problem = str(error)
            return shortage_of(error) is None
        if is_new:
            self._put_in_force(sources, policies)
        elif self._problem:
            log.info("policies are as they were, and in force as before", files=files_of(sources))
        self._problem = ""
        return True

    def _put_in_force(self, sources: dict[str, str], policies: Policies) -> None:
        gone = missing_from(sources, self._in_force)
        self._in_force, self.policies = sources, policies
        for changed in self._told:
            changed.set()
        told = {"folder": str(self._folder), "files": files_of(sources)}
        if gone:  # what it forbade is forbidden no more, which nobody may have meant
            log.warning("policies were changed and are in force from now on, without some files", gone=gone, **told)
        else:
            log.info("policies were changed and are in force from now on", **told)
        self._warn()

    def _compile(self, sources: Mapping[str, str]) -> Policies:
        try:
            return Policies(sources, self.known)
        except PolicyInvalid as error:
            raise PolicyInvalid(str(self._folder / error.file), error.problem) from error

    def _warn(self) -> None:
        """Warn of roles that may be misspelt, and of policies that permit `spawn` but not `run-as`."""
        if unused := sorted(self._roles.keys() - self.policies.roles):
            log.warning("the configuration gives roles that no policy names", roles=unused)
        if unknown := sorted(self.policies.roles.difference(self._roles, _OF_THE_DAEMON)):
            log.warning("policies name roles that the configuration gives nobody", roles=unknown)
        anybody = Principal(User("", ""), frozenset())
        default_account = Resource(On.ACCOUNT, is_default=True)
        may_spawn = self.policies.decide(anybody, SPAWN, DAEMON).permitted
        if may_spawn and not self.policies.decide(anybody, RUN_AS, default_account).permitted:
            log.warning(
                "policies permit spawn to everybody, but not run-as on the default account: permit it where"
                " resource.isDefault"
            )
