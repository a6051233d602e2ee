"""The system accounts that jobs run as: the one that a spawn names, or else the default one of the job's owner."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from workerd.access.policy import On, Resource
from workerd.access.users import known_by
from workerd.engine.job import User


@dataclass(frozen=True, slots=True)
class Accounts:
    """Which account each user's jobs run as.

    Attributes:
        own: the name of the daemon's account.
        default: the account of users who are not in `of_users`; empty for the daemon's.
        of_users: accounts of single users, by the user's name or id. An id takes precedence over a name.
    """

    own: str
    default: str = ""
    of_users: Mapping[str, str] = field(default_factory=dict)

    def default_of(self, user: User) -> str:
        """Return the account that a user's jobs run as when a spawn names none."""
        mapped = (self.of_users[key] for key in known_by(user) if key in self.of_users)
        return next(mapped, self.default or self.own)

    def effective(self, user: User, named: str = "") -> Resource:
        """Return the account that a job of a user would run as, to decide on.

        Args:
            named: the account that the spawn names; empty for none.
        """
        default = self.default_of(user)
        return Resource(On.ACCOUNT, named or default, is_default=named in ("", default))

    def to_take_on(self, name: str) -> str:
        """Return an account in the engine's form: empty for the daemon's own account."""
        return "" if name == self.own else name
