"""Who may do what: Cedar policies, compiled and asked. What no policy permits is denied.

A policy speaks of a *principal* (a user, who may have roles), an *action* (a right, as handlers declare it) and a
*resource*: a job, the daemon itself where no job is meant, another user, or a system account. The schema, which
policies are validated against, is made of the rights that the installed handlers declare.
"""

import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import cedarpy
import structlog

from workerd.access.policy_reach import loosen
from workerd.access.policy_text import cost_of, named, parse, place_of_fault, statements
from workerd.engine.job import User
from workerd.errors import PolicyInvalid

log = structlog.get_logger()
_REMEMBERED_DECISIONS = 4096
_LONGEST_REMEMBERED = 256  # of an id, which callers may make up: that of a system account, say
_READ = "Read"
SPAWN = "spawn"
RUN_AS = "run-as"
_APPLIES_TO_NOTHING = "unable to find an applicable action"  # in Cedar's words
_TOO_LONG = "a condition is too long, or nested too deep: make several policies of it, or test with `in [...]`"


class On(enum.StrEnum):
    """What a right can be exercised on; the values are the names of Cedar's entity types."""

    JOB = "Job"
    DAEMON = "Daemon"
    USER = "User"
    ACCOUNT = "Account"


@dataclass(frozen=True, slots=True)
class Right:
    """What is known of a right.

    Attributes:
        on: the kinds of resources that it can be exercised on.
        reads: whether it changes nothing; policies know these rights as the group `Action::"Read"`.
    """

    on: frozenset[On]
    reads: bool


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a user, with the roles that the configuration gives them.

    Attributes:
        acted_for: whether somebody else asks for them.
    """

    user: User
    roles: frozenset[str]
    acted_for: bool = False


@dataclass(frozen=True, slots=True)
class Resource:
    """What it is asked for.

    Attributes:
        id: a job's, user's or account's; empty for the daemon.
        owner: a job's owner, or the user who is meant; None for what has none.
        shares: who was given which right on a job: pairs of a user's id and a right. Policies see those of who asks.
        roles: those of the user who is meant.
        is_default: whether jobs of the user who asks run as this account when a spawn names none.
    """

    on: On
    id: str = ""
    owner: User | None = None
    shares: frozenset[tuple[str, str]] = frozenset()
    roles: frozenset[str] = frozenset()
    is_default: bool = False


DAEMON = Resource(On.DAEMON)


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, with the policies that it comes from, as FILE:NAME; none where nothing permits it."""

    permitted: bool
    policies: tuple[str, ...]


class Policies:
    """A set of policies that fit the rights there are.

    Args:
        sources: the text of each file by its name.
        rights: all rights there are, by name.

    Attributes:
        jobs: the ids of those that policies name.
        roles: those that policies name.

    Raises:
        PolicyInvalid: a file is no policies, or they speak of what is not there.
    """

    def __init__(self, sources: Mapping[str, str], rights: Mapping[str, Right]) -> None:
        self._sources = dict(sources)
        self._rights = rights
        self._schema = cedarpy.Schema.from_str(_schema(rights))
        policies: dict[str, Any] = {}
        for name, text in sources.items():
            compiled = self._compile(name, text)
            if taken := sorted(policies.keys() & compiled):  # a file's name may hold what an @id does
                raise PolicyInvalid(name, f"another file has a policy that is called {taken[0]}: rename one of the two")
            policies |= compiled
        self._set = _policy_set(policies)
        self.jobs = named(On.JOB, policies)
        self._policies = policies
        self.roles = named("Role", policies)
        self._remembered = lru_cache(_REMEMBERED_DECISIONS)(self._decide)
        self._remembered_reach = lru_cache(_REMEMBERED_DECISIONS)(self._may_reach_any)

    def with_added(self, name: str, text: str) -> "Policies":
        """Give these policies and those of a further file, which takes the place of one of its name.

        Raises:
            PolicyInvalid: as for the constructor.
        """
        return Policies({**self._sources, name: text}, self._rights)

    def decide(self, principal: Principal, right: str, resource: Resource) -> Decision:
        """Decide whether somebody may do something. A policy that cannot be evaluated denies it."""
        # A job may be shared with very many: each decision would cost everybody dearly, and be remembered with all.
        shares = frozenset(share for share in resource.shares if share[0] == principal.user.id)
        # Where no policy names a job, nothing depends on which it is.
        identifier = "" if resource.on is On.JOB and not self.jobs else resource.id
        decide = self._remembered if len(identifier) <= _LONGEST_REMEMBERED else self._decide
        return decide(principal, right, replace(resource, id=identifier, shares=shares))

    def may_reach_any(self, principal: Principal, right: str) -> bool:
        """Return whether a user might have a right on another user's job, not shared with them and named by no policy.

        False is certain. True may be wrong if a policy tests something else of the job, such as its owner's name.
        """
        return self._remembered_reach(principal, right)

    @cached_property
    def _loosened(self) -> cedarpy.PolicySet:
        return _policy_set(loosen(self._policies))

    def _may_reach_any(self, principal: Principal, right: str) -> bool:
        strangers = Resource(On.JOB, "", User("", ""))
        return bool(self._ask(self._loosened, principal, right, strangers).allowed)

    def _decide(self, principal: Principal, right: str, resource: Resource) -> Decision:
        if right not in self._rights or resource.on not in self._rights[right].on:
            return Decision(False, ())
        answer = self._ask(self._set, principal, right, resource)
        if errors := answer.diagnostics.errors:
            log.error("a policy could not be evaluated, and what was asked for is denied", right=right, errors=errors)
            return Decision(False, ())
        return Decision(answer.allowed, tuple(sorted(answer.diagnostics.reasons)))

    def _ask(self, policies: cedarpy.PolicySet, principal: Principal, right: str, resource: Resource) -> Any:
        request = {
            "principal": _uid(On.USER, principal.user.id),
            "action": _uid("Action", right),
            "resource": _uid(resource.on, resource.id),
            "context": {"right": right, "actedFor": principal.acted_for},
        }
        return cedarpy.is_authorized(request, policies, _entities(principal, resource), self._schema)

    def _compile(self, file: str, text: str) -> dict[str, Any]:
        """Compile one file: its policies in Cedar's JSON, by FILE:NAME."""
        if problem := cost_of(text):
            raise PolicyInvalid(file, problem)
        try:
            parsed = parse(text)
        except ValueError as error:
            raise PolicyInvalid(file, place_of_fault(text) + " ".join(str(error).split())) from error
        except RecursionError as error:
            raise PolicyInvalid(file, place_of_fault(text) + _TOO_LONG) from error
        if parsed["templates"]:
            raise PolicyInvalid(file, "it holds a template, which nothing here fills in")
        compiled: dict[str, Any] = {}
        labels: dict[str, str] = {}
        for identifier, policy in parsed["staticPolicies"].items():
            label = f"{file}:{policy.get('annotations', {}).get('id') or identifier.replace('policy', '#')}"
            if label in compiled:
                raise PolicyInvalid(file, f"two policies are called {label}: each needs an @id of its own")
            compiled[label] = policy
            labels[identifier] = label
        if faults := cedarpy.validate_policies(text, self._schema).errors:
            first = faults[0]
            problem = " ".join(first.error.split()).removeprefix(f"for policy `{first.policy_id}`, ")
            if problem.startswith(_APPLIES_TO_NOTHING):
                problem += f": {self._exercised(parsed['staticPolicies'][first.policy_id])}"
            line = _line_of(text, first.policy_id)
            raise PolicyInvalid(file, f"line {line}: {labels[first.policy_id]}: {problem}")
        for identifier, label in labels.items():
            try:
                _policy_set({label: compiled[label]})
            except (ValueError, RecursionError) as error:
                raise PolicyInvalid(file, f"line {_line_of(text, identifier)}: {_TOO_LONG}") from error
        return compiled

    def _exercised(self, policy: Any) -> str:
        """Say of the rights that a policy names what they are exercised on; of all if it names none."""
        given = named("Action", policy["action"])
        rights = {
            name: right
            for name, right in self._rights.items()
            if not given or name in given or (right.reads and _READ in given)
        }
        exercised = (f"{name} on {' or '.join(sorted(right.on))}" for name, right in sorted(rights.items()))
        return f"principals are Users, and rights are exercised so: {', '.join(exercised)}"


def _line_of(text: str, identifier: str) -> int:
    """Return the line that a policy begins on. Cedar counts the policies of a text, and calls them so."""
    return statements(text)[int(identifier.removeprefix("policy"))].line


def _policy_set(policies: Mapping[str, Any]) -> cedarpy.PolicySet:
    return cedarpy.PolicySet.from_json_str(
        json.dumps({"staticPolicies": policies, "templates": {}, "templateLinks": []})
    )


def _schema(rights: Mapping[str, Right]) -> str:
    """Write the schema in Cedar's language (docs.cedarpolicy.com/schema)."""
    lines = [
        "entity Role;",
        "entity User in [Role] { name: String };",
        "entity Daemon;",
        "entity Account { isDefault: Bool };",
        "type Share = { user: User, right: String };",
        "entity Job { owner: User, shares: Set<Share> };",
        f'action "{_READ}";',
    ]
    for name, right in sorted(rights.items()):
        group = f' in [Action::"{_READ}"]' if right.reads else ""
        kinds = ", ".join(sorted(right.on))
        applies = f"principal: User, resource: [{kinds}], context: {{ right: String, actedFor: Bool }}"
        lines.append(f"action {json.dumps(name)}{group} appliesTo {{ {applies} }};")
    return "\n".join(lines)


def _entities(principal: Principal, resource: Resource) -> list[dict[str, Any]]:
    """Tell Cedar of everybody and everything that the request speaks of."""
    entities = [_user(principal.user, principal.roles)]
    if resource.owner is not None and resource.owner.id != principal.user.id:
        entities.append(_user(resource.owner, resource.roles))
    match resource.on:
        case On.JOB:
            owner = resource.owner.id if resource.owner is not None else ""
            shares = [{"user": _reference(user), "right": right} for user, right in sorted(resource.shares)]
            entities.append(_entity(On.JOB, resource.id, {"owner": _reference(owner), "shares": shares}))
        case On.ACCOUNT:
            entities.append(_entity(On.ACCOUNT, resource.id, {"isDefault": resource.is_default}))
        case On.DAEMON:
            entities.append(_entity(On.DAEMON, resource.id, {}))
        case On.USER:
            pass
    return entities


def _user(user: User, roles: Iterable[str]) -> dict[str, Any]:
    return _entity(On.USER, user.id, {"name": user.name}, [_uid("Role", role) for role in sorted(roles)])


def _entity(kind: On, identifier: str, attributes: dict[str, Any], parents: Sequence[Any] = ()) -> dict[str, Any]:
    return {"uid": _uid(kind, identifier), "attrs": attributes, "parents": parents}


def _uid(kind: str, identifier: str) -> dict[str, str]:
    return {"type": str(kind), "id": identifier}


def _reference(user_id: str) -> dict[str, dict[str, str]]:
    return {"__entity": _uid(On.USER, user_id)}
