"""Sets of policies as they come, decided by Cedar and by a model of it: nobody gets in whom no policy lets in."""

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import event, given, settings
from hypothesis import strategies as st

from workerd.access.policy import On, Policies, Principal, Resource
from workerd.engine.job import User
from workerd.registry import load_routes, rights_of

KNOWN = rights_of(load_routes().values())
RIGHTS = ("status", "stream-log", "stop", "remove")
READS = ("status", "stream-log")
USERS = ("ann", "bob", "eve")
JOBS = ("j1", "j2")
ROLES = ("admin", "viewer")


@dataclass(frozen=True)
class Question:
    """Whether somebody may do something with a job."""

    user: str
    roles: frozenset[str]
    right: str
    job: str
    owner: str
    shares: frozenset[tuple[str, str]]

    def ask(self, policies: Policies) -> tuple[bool, tuple[str, ...]]:
        """Let Cedar decide."""
        principal = Principal(User(self.user, self.user), self.roles)
        resource = Resource(On.JOB, self.job, User(self.owner, self.owner), self.shares)
        decision = policies.decide(principal, self.right, resource)
        return decision.permitted, decision.policies


@dataclass(frozen=True)
class Part:
    """A part of a policy: how it is written, and when it holds."""

    text: str
    holds: Callable[[Question], bool]


@dataclass(frozen=True)
class Policy:
    """A policy of the family."""

    permits: bool
    scope: tuple[Part, Part, Part]
    condition: Part

    def text(self, name: str) -> str:
        """Write it in Cedar's language."""
        effect = "permit" if self.permits else "forbid"
        return f'@id("{name}") {effect} ({", ".join(part.text for part in self.scope)}) {self.condition.text};'

    def matches(self, question: Question) -> bool:
        return all(part.holds(question) for part in (*self.scope, self.condition))


def _always(text: str) -> Part:
    return Part(text, lambda _: True)


def _is_user(name: str) -> Part:
    return Part(f'principal == User::"{name}"', lambda question: question.user == name)


def _in_role(name: str) -> Part:
    return Part(f'principal in Role::"{name}"', lambda question: name in question.roles)


def _one_of(rights: tuple[str, ...]) -> Part:
    listed = ", ".join(f'Action::"{right}"' for right in rights)
    return Part(f"action in [{listed}]", lambda question: question.right in rights)


def _is_right(right: str) -> Part:
    return Part(f'action == Action::"{right}"', lambda question: question.right == right)


def _is_job(job: str) -> Part:
    return Part(f'resource == Job::"{job}"', lambda question: question.job == job)


def _owned_by(name: str) -> Part:
    text = f'resource is Job && resource.owner.name == "{name}"'
    return Part(text, lambda question: question.owner == name)


def _about(right: str) -> Part:
    return Part(f'context.right == "{right}"', lambda question: question.right == right)


def _when(part: Part) -> Part:
    return Part(f"when {{ {part.text} }}", part.holds)


def _unless(part: Part) -> Part:
    return Part(f"unless {{ {part.text} }}", lambda question: not part.holds(question))


OWNS = Part("resource is Job && resource.owner == principal", lambda question: question.owner == question.user)
SHARED = Part(
    "resource is Job && resource.shares.contains({ user: principal, right: context.right })",
    lambda question: (question.user, question.right) in question.shares,
)
READ = Part('action in Action::"Read"', lambda question: question.right in READS)

a_user, a_right, a_job, a_role = map(st.sampled_from, (USERS, RIGHTS, JOBS, ROLES))
some_rights = st.lists(a_right, min_size=1, max_size=3, unique=True).map(tuple)
principals = st.one_of(st.just(_always("principal")), a_user.map(_is_user), a_role.map(_in_role))
actions = st.one_of(st.just(_always("action")), a_right.map(_is_right), some_rights.map(_one_of), st.just(READ))
resources = st.one_of(st.sampled_from([_always("resource"), _always("resource is Job")]), a_job.map(_is_job))
facts = st.one_of(st.sampled_from([OWNS, SHARED]), a_right.map(_about), a_user.map(_owned_by))
conditions = st.one_of(st.just(_always("")), facts.map(_when), facts.map(_unless))
family = st.builds(Policy, st.booleans(), st.tuples(principals, actions, resources), conditions)
questions = st.builds(
    Question,
    user=a_user,
    roles=st.frozensets(a_role),
    right=a_right,
    job=a_job,
    owner=a_user,
    shares=st.frozensets(st.tuples(a_user, a_right), max_size=4),
)


def compile_set(members: list[Policy]) -> Policies:
    """Compile a set of policies, each named by its place."""
    text = "\n".join(policy.text(f"p{number}") for number, policy in enumerate(members))
    return Policies({"set.cedar": text}, KNOWN)


@settings(deadline=None, max_examples=150)
@given(st.lists(family, max_size=6), st.lists(questions, min_size=1, max_size=8))
def test_cedar_decides_as_the_model_does(members: list[Policy], asked: list[Question]) -> None:
    policies = compile_set(members)
    for question in asked:
        matching = [(number, policy) for number, policy in enumerate(members) if policy.matches(question)]
        permits = {f"set.cedar:p{number}" for number, policy in matching if policy.permits}
        forbids = {f"set.cedar:p{number}" for number, policy in matching if not policy.permits}
        permitted, deciding = question.ask(policies)
        assert permitted == bool(permits and not forbids)
        if permitted and question.user != question.owner:
            event("another user was let in")
        assert set(deciding) == (forbids or permits)
        assert question.ask(policies) == (permitted, deciding)  # the remembered one


@settings(deadline=None, max_examples=300)
@given(st.lists(family, max_size=6), st.lists(questions, min_size=1, max_size=8))
def test_who_reaches_no_job_of_others_is_permitted_nothing_on_one(members: list[Policy], asked: list[Question]) -> None:
    """Or a list would leave out what may be seen."""
    policies = compile_set(members)
    for question in asked:
        is_shared = any(user == question.user for user, _ in question.shares)
        if question.owner == question.user or is_shared or question.job in policies.jobs:
            continue
        permitted, _ = question.ask(policies)
        reaches = policies.may_reach_any(Principal(User(question.user, question.user), question.roles), question.right)
        event(f"permitted: {permitted}, reaches: {reaches}")
        assert reaches or not permitted
