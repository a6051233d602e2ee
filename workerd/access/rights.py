"""The rights as they stand: the policies in force, taken up anew when their files change, and the roles of users."""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from pki.identity import is_user_id
from workerd.access.following import follow_folder
from workerd.access.policy import Decision, Policies, Principal, Resource, Right
from workerd.access.sources import read_policies
from workerd.engine.job import User
from workerd.errors import PolicyInvalid

log = structlog.get_logger()


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
        self._sources = read_policies(folder)
        self._was_there = os.path.exists(folder)
        self.policies = Policies(self._sources, known)

    def roles_of(self, user: User) -> frozenset[str]:
        """Tell which roles a user has."""
        # An id means one person, and nobody else who is called so.
        known_by = {user.id} if is_user_id(user.name) else {user.id, user.name}
        return frozenset(role for role, users in self._roles.items() if not known_by.isdisjoint(users))

    def decide(self, user: User, right: str, resource: Resource, *, acted_for: bool = False) -> Decision:
        """Decide whether a user may do something.

        Args:
            acted_for: whether somebody else asks for them.
        """
        return self.policies.decide(Principal(user, self.roles_of(user), acted_for), right, resource)

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
        await follow_folder(self._folder, self._look)

    def _look(self) -> None:
        try:
            sources = read_policies(self._folder, must_be_there=self._was_there)
            self._was_there = self._was_there or os.path.exists(self._folder)
            self._problem = ""
            if sources == self._sources:
                return
            self._sources = sources
            self.policies = Policies(sources, self.known)
        except PolicyInvalid as error:
            if str(error) != self._problem:
                log.error("policies were changed and cannot be used; those from before stay", error=str(error))
            self._problem = str(error)
        else:
            log.info("policies were changed and are in force from now on", folder=str(self._folder))
            for changed in self._told:
                changed.set()
