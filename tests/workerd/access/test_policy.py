"""What policies decide, and which are refused."""

import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from workerd.access.policy import DAEMON, On, Policies, Principal, Resource
from workerd.access.sources import DEFAULT_FILE, read_policies
from workerd.engine.job import User
from workerd.errors import PolicyInvalid
from workerd.registry import load_routes, rights_of

KNOWN = rights_of(load_routes().values())
OWNER = User("11111111-1111-4111-8111-111111111111", "owner")
OTHER = User("22222222-2222-4222-8222-222222222222", "other")
ON_JOBS = sorted(name for name, right in KNOWN.items() if On.JOB in right.on)
READS = {name for name, right in KNOWN.items() if right.reads}
OVERFLOW = "9223372036854775807 + 1 > 0"
"""An expression that fits the schema and cannot be evaluated."""


def who(user: User = OTHER, *roles: str) -> Principal:
    """Give somebody who asks."""
    return Principal(user, frozenset(roles))


def job(*shares: tuple[User, str], owner: User = OWNER) -> Resource:
    """Give a job of the owner's."""
    return Resource(On.JOB, "a-job", owner, frozenset((user.id, right) for user, right in shares))


def policies(text: str, **files: str) -> Policies:
    """Compile policies that stand alone, without the default ones."""
    return Policies({DEFAULT_FILE: text, **files}, KNOWN)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """The policies that are shipped."""
    return Policies(read_policies(tmp_path_factory.mktemp("empty")), KNOWN)


@pytest.mark.parametrize(
    ("text", "ordinary", "viewer"),
    [
        ("", False, True),
        ('permit (principal, action, resource) when { principal.name == "other" };', True, True),
        ('permit (principal, action, resource is Job) when { resource.owner.name == "ci" };', True, True),
        ('permit (principal in Role::"ci", action, resource is Job) when { resource.owner.name == "a" };', False, True),
        ('permit (principal, action == Action::"stop", resource is Job);', False, True),
        ('permit (principal, action, resource) when { resource == Job::"a-job" };', False, True),
        ("permit (principal, action, resource is Job) when { resource.owner != principal };", True, True),
        ("forbid (principal, action, resource is Job) unless { resource.owner == principal };", False, False),
        ('forbid (principal, action, resource is Job) when { resource.owner.name == "ci" };', False, True),
    ],
)
def test_ordinary_users_reach_jobs_of_others_only_if_a_policy_for_them_says_so(
    tmp_path: Path, text: str, ordinary: bool, viewer: bool
) -> None:
    in_force = Policies({**read_policies(tmp_path), "mine.cedar": text or "// none"}, KNOWN)
    assert in_force.may_reach_any(who(), "status") is ordinary
    assert in_force.may_reach_any(who(OTHER, "viewer"), "status") is viewer


@pytest.mark.parametrize("right", ON_JOBS)
def test_what_default_policies_permit_on_a_job(default: Policies, right: str) -> None:
    given = job((OTHER, right))
    expected = {
        "owner": True,
        "other": False,
        "shared": right not in {"share", "show-envs"},
        "shared, another right": False,
        "shared with somebody else": False,
        "viewer": right in READS,
        "admin": right != "show-envs",
        "owner and viewer": True,
        "of no known role": False,
    }
    another = "status" if right != "status" else "stop"
    found = {
        "owner": default.decide(who(OWNER), right, given).permitted,
        "other": default.decide(who(), right, job()).permitted,
        "shared": default.decide(who(), right, given).permitted,
        "shared, another right": default.decide(who(), right, job((OTHER, another))).permitted,
        "shared with somebody else": default.decide(who(User("3", "other")), right, given).permitted,
        "viewer": default.decide(who(OTHER, "viewer"), right, job()).permitted,
        "admin": default.decide(who(OTHER, "admin"), right, job()).permitted,
        "owner and viewer": default.decide(who(OWNER, "viewer"), right, job()).permitted,
        "of no known role": default.decide(who(OTHER, "Admin"), right, job()).permitted,
    }
    assert found == expected


@pytest.mark.parametrize("right", ["status", "show-envs", "stop"])
def test_a_job_that_is_not_there_is_nobodys(default: Policies, right: str) -> None:
    nobodys = job(owner=User("", ""))
    assert not default.decide(who(), right, nobodys).permitted
    assert default.decide(who(OTHER, "admin"), right, nobodys).permitted == (right != "show-envs")


@pytest.mark.parametrize(
    ("roles", "right", "resource", "permitted"),
    [
        ((), "spawn", DAEMON, True),
        ((), "list", DAEMON, True),
        ((), "whoami", DAEMON, True),
        ((), "explain", DAEMON, False),
        (("viewer",), "spawn", DAEMON, False),
        (("viewer",), "list", DAEMON, True),
        (("admin", "viewer"), "spawn", DAEMON, True),
        (("admin",), "explain", DAEMON, True),
        ((), "impersonate", Resource(On.USER, OWNER.id, OWNER), False),
        (("viewer",), "impersonate", Resource(On.USER, OWNER.id, OWNER), False),
        (("admin",), "impersonate", Resource(On.USER, OWNER.id, OWNER), True),
        ((), "run-as", Resource(On.ACCOUNT, "root"), False),
        (("admin",), "run-as", Resource(On.ACCOUNT, "root"), True),
        ((), "run-as", Resource(On.ACCOUNT, "root", is_default=True), True),
        (("viewer",), "run-as", Resource(On.ACCOUNT, "root", is_default=True), False),
        (("admin", "viewer"), "run-as", Resource(On.ACCOUNT, "root", is_default=True), True),
        (("admin",), "stop", DAEMON, False),
        (("admin",), "fly", DAEMON, False),
        (("admin",), "impersonate", job(), False),
    ],
)
def test_what_default_policies_permit_elsewhere(
    default: Policies, roles: tuple[str, ...], right: str, resource: Resource, permitted: bool
) -> None:
    assert default.decide(who(OTHER, *roles), right, resource).permitted is permitted


@pytest.mark.parametrize("is_default", [True, False])
@pytest.mark.parametrize("roles", [(), ("admin",)])
def test_a_policy_that_forbids_an_account_forbids_it_as_the_default_one_too(
    default: Policies, roles: tuple[str, ...], is_default: bool
) -> None:
    text = 'forbid (principal, action == Action::"run-as", resource == Account::"root");'
    forbidding = default.with_added("site.cedar", text)
    root, other = (Resource(On.ACCOUNT, name, is_default=is_default) for name in ("root", "build"))
    assert forbidding.decide(who(OTHER, *roles), "run-as", root).policies == ("site.cedar:#0",)
    assert forbidding.decide(who(OTHER, *roles), "run-as", other).permitted is (is_default or bool(roles))


def test_a_decision_names_the_policies_it_comes_from(default: Policies) -> None:
    assert default.decide(who(OWNER, "admin"), "stop", job()).policies == ("default.cedar:admin", "default.cedar:owner")
    denied = default.decide(who(OTHER, "admin"), "show-envs", job())
    assert denied.policies == ("default.cedar:envs-are-the-owners",)
    assert default.decide(who(), "stop", job()).policies == ()


def test_a_policy_without_a_name_goes_by_its_place() -> None:
    text = '@id("first") permit (principal == User::"x", action, resource); permit (principal, action, resource);'
    assert policies(text).decide(who(), "stop", job()).policies == ("default.cedar:#1",)


REFUSED = [
    ("permit (principal", "", "unexpected end of input"),
    ('@id("fly") permit (principal, action == Action::"fly", resource);', "fly", "unrecognized action"),
    ('permit (principal, action, resource is Job) when { resource.colour == "red" };', "#0", "`colour`"),
    ("permit (principal == ?principal, action, resource);", "", "template"),
    ('permit (principal in Group::"x", action, resource);', "#0", "`Group`"),
    ('permit (principal, action == Action::"stop", resource is Daemon);', "#0", "applicable action"),
    ('@id("a") permit (principal, action, resource); @id("a") forbid (principal, action, resource);', "a", "two"),
    ("permit (principal, action, resource) when { principal.name };", "#0", "expected Bool"),
]


@pytest.mark.parametrize(("text", "name", "problem"), REFUSED)
def test_policies_that_cannot_be_used_are_refused_with_file_and_name(text: str, name: str, problem: str) -> None:
    with pytest.raises(PolicyInvalid) as refused:
        policies("", **{"mine.cedar": text})
    assert str(refused.value).startswith("the policies in mine.cedar cannot be used: ")
    assert problem in str(refused.value)
    if name:
        assert f"mine.cedar:{name}" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "bad",
    [
        "permit (princpal, action, resource);",
        "permit (principal, action, resource",
        '@id("x") permit (principal, action == Action::"fly", resource);',
        f"permit (principal, action, resource) when {{ {'(' * 60}",
        'permit (principal == User::"x, action, resource);',
    ],
)
def test_policies_that_cannot_be_used_are_told_with_the_line_on_which_they_begin(bad: str) -> None:
    before = '// permit; "\n@id(";\n//")\npermit (principal,\naction, resource); // and;\n\n'
    with pytest.raises(PolicyInvalid, match=r"cannot be used: line 7: "):
        policies(before + bad)


def test_a_policy_that_is_called_like_one_of_another_file_takes_nothing_away_from_it() -> None:
    forbids = '@id("b.cedar:c") forbid (principal, action, resource);'
    permits = '@id("c") permit (principal, action, resource);'
    with pytest.raises(PolicyInvalid, match=r"a\.cedar:b\.cedar:c: rename"):
        Policies({"a.cedar": forbids, "a.cedar:b.cedar": permits}, KNOWN)


def test_a_right_on_what_it_is_not_exercised_on_is_told_with_what_it_is() -> None:
    for action, told in (
        ('action == Action::"stop"', "so: stop on Job"),
        ('action in [Action::"spawn", Action::"run-as"]', "so: run-as on Account, spawn on Daemon"),
        ('action in Action::"Read"', "so: list on Daemon, status on Job, stream-log on Job, whoami on Daemon"),
    ):
        with pytest.raises(PolicyInvalid) as refused:
            policies(f"permit (principal, {action}, resource is Role);")
        assert str(refused.value).endswith(told)


def test_the_roles_that_policies_name_are_known(default: Policies) -> None:
    assert default.roles == {"admin", "viewer"}
    text = 'permit (principal in Role::"a", action, resource) unless { principal in [Role::"b"] };'
    assert policies(text).roles == {"a", "b"}


@pytest.mark.parametrize("bracket", ["()", "[]"])
@pytest.mark.parametrize("disguise", ["", "// \r", '"\\"" == "//" || '])
def test_brackets_that_would_overflow_the_parsers_stack_are_refused(bracket: str, disguise: str) -> None:
    """They would end the daemon with a signal: whoever may try policies could do that."""
    nested = bracket[0] * 5000 + "true" + bracket[1] * 5000
    with pytest.raises(PolicyInvalid, match="more than 50 brackets"):
        policies(f"permit (principal, action, resource) when {{ {disguise}{nested} }};")


def test_brackets_in_texts_and_comments_do_not_count() -> None:
    text = f'// {"(" * 100}\npermit (principal, action, resource) when {{ context.right != "{"[" * 100}" }};'
    assert policies(text).decide(who(), "stop", job()).permitted


@pytest.mark.parametrize(
    "condition",
    [" || ".join(["false"] * 1500), "if true then " * 600 + "true" + " else true" * 600, "1+" * 7000 + "1>0"],
)
def test_a_condition_that_is_too_long_is_refused_and_no_fault(condition: str) -> None:
    with pytest.raises(PolicyInvalid, match=r"mine.cedar cannot be used: line 1: a condition is too long, or nested"):
        policies("", **{"mine.cedar": f"permit (principal, action, resource) when {{ {condition} }};"})


@pytest.mark.parametrize("step", [".a", " . // to hide it\n a", " .\t a"])
def test_a_path_that_would_take_minutes_to_compile_is_refused(step: str) -> None:
    """A job's owner may try policies, and nobody is served meanwhile."""
    condition = f"context has a{step * 1000}"
    with pytest.raises(PolicyInvalid, match="a path after `has` has more than 3 steps"):
        policies("", **{"mine.cedar": f"permit (principal, action, resource) when {{ {condition} }};"})


def test_a_path_that_people_write_is_taken() -> None:
    text = 'permit (principal, action, resource is Job) when { resource has owner.name && "has a.a.a.a" != "" };'
    assert policies(text).decide(who(), "stop", job()).permitted


def test_a_folder_adds_to_the_default_policies_or_takes_the_place_of_them(tmp_path: Path) -> None:
    assert read_policies(tmp_path / "none").keys() == {DEFAULT_FILE}
    shipped = read_policies(tmp_path)[DEFAULT_FILE]
    (tmp_path / "more.cedar").write_text("// ü", "utf-8")
    (tmp_path / "more.cedar~").write_text("no policies")
    assert read_policies(tmp_path) == {DEFAULT_FILE: shipped, "more.cedar": "// ü"}
    (tmp_path / DEFAULT_FILE).write_text("// nothing")
    assert read_policies(tmp_path) == {DEFAULT_FILE: "// nothing", "more.cedar": "// ü"}


def test_an_empty_file_is_refused_as_one_that_is_still_being_written(tmp_path: Path) -> None:
    (tmp_path / DEFAULT_FILE).touch()
    with pytest.raises(PolicyInvalid, match="it is empty"):
        read_policies(tmp_path)


def test_a_default_file_without_policies_denies_everything() -> None:
    assert not policies("// nothing").decide(who(OWNER, "admin"), "status", job()).permitted


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "long.cedar", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PolicyInvalid, match=r"long.cedar cannot be used: it is longer than"):
        read_policies(tmp_path)


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    """What it forbids would be permitted."""
    (tmp_path / "file").write_text("// no folder")
    with pytest.raises(PolicyInvalid, match=f"{tmp_path}/file cannot be used: the folder cannot be read: Not a dir"):
        read_policies(tmp_path / "file")
    with pytest.raises(PolicyInvalid, match="not there any more"):
        read_policies(tmp_path / "none", must_be_there=True)


@pytest.mark.parametrize("name", ["bytes.cedar", "folder.cedar", "lost.cedar", "pipe.cedar", "endless.cedar"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "bytes.cedar").write_bytes(b"// \xff") if name == "bytes.cedar" else None
    (tmp_path / "folder.cedar").mkdir() if name == "folder.cedar" else None
    (tmp_path / "lost.cedar").symlink_to("nowhere") if name == "lost.cedar" else None
    os.mkfifo(tmp_path / "pipe.cedar") if name == "pipe.cedar" else None
    (tmp_path / "endless.cedar").symlink_to("/dev/zero") if name == "endless.cedar" else None
    problem = "/dev/zero is refused" if name == "endless.cedar" else "it cannot be read"
    with pytest.raises(PolicyInvalid, match=f"{name} cannot be used: {problem}: "):
        read_policies(tmp_path)


@pytest.mark.parametrize("effect", ["permit", "forbid"])
@pytest.mark.parametrize("condition", [OVERFLOW, 'User::"nobody".name == "x"'])
def test_a_policy_that_cannot_be_evaluated_denies(effect: str, condition: str) -> None:
    """Cedar passes over such a policy, so that a forbid would not forbid."""
    text = f'permit (principal, action, resource); {effect} (principal, action == Action::"stop", resource)'
    with_a_fault = policies(f"{text} when {{ {condition} }};")
    assert not with_a_fault.decide(who(OWNER), "stop", job()).permitted
    assert with_a_fault.decide(who(OWNER), "status", job()).permitted


NAMES = ['"', "\\", "a\nb", "a\0b", "Jürgen", "名前", "🦆", "'); permit (principal, action, resource); //", "*", ""]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_only_a_name(default: Policies, name: str) -> None:
    named = User(OTHER.id, name)
    assert not default.decide(who(named, name), "stop", job()).permitted
    assert default.decide(who(named), "stop", job(owner=named)).permitted
    assert not default.decide(who(), "run-as", Resource(On.ACCOUNT, name)).permitted
    assert not default.decide(
        who(), "impersonate", Resource(On.USER, "x", User("x", name), roles=frozenset({name}))
    ).permitted
    odd = User(name, name)
    assert default.decide(who(odd), "status", job((odd, "status"))).permitted
    assert not default.decide(who(odd), "stop", job((odd, "status"))).permitted


@pytest.mark.parametrize("name", NAMES[:6])
def test_a_policy_means_a_name_exactly(name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\0", "\\0")
    by_name = policies(f'permit (principal, action, resource) when {{ principal.name == "{quoted}" }};')
    assert by_name.decide(who(User("x", name)), "stop", job()).permitted
    assert not by_name.decide(who(User("x", name + " ")), "stop", job()).permitted


def test_users_of_one_name_are_not_one_user(default: Policies) -> None:
    assert not default.decide(who(User("another-id", OWNER.name)), "status", job()).permitted


def test_no_decision_outlives_what_it_was_made_of(default: Policies) -> None:
    """Decisions are remembered: whatever is different makes another."""
    for _ in range(2):
        assert not default.decide(who(), "stop", job()).permitted
        assert default.decide(who(), "stop", job((OTHER, "stop"))).permitted
        assert default.decide(who(OTHER, "admin"), "stop", job()).permitted
        assert not default.decide(who(), "stop", job((OTHER, "status"))).permitted
        assert default.decide(who(), "stop", job(owner=OTHER)).permitted
    forbidding = default.with_added("more.cedar", 'forbid (principal, action == Action::"stop", resource);')
    assert not forbidding.decide(who(OWNER), "stop", job()).permitted
    assert default.decide(who(OWNER), "stop", job()).permitted


def test_a_right_of_a_plugin_can_be_spoken_of() -> None:
    known: Any = {**KNOWN, "greet": KNOWN["list"]}
    text = 'permit (principal, action == Action::"greet", resource);'
    assert Policies({"mine.cedar": text}, known).decide(who(), "greet", DAEMON).permitted
    with pytest.raises(PolicyInvalid, match="greet"):
        Policies({"mine.cedar": text}, KNOWN)


def test_a_job_that_is_shared_with_very_many_costs_no_more_than_another(default: Policies) -> None:
    """Its owner could hold up everybody who lists jobs, and fill the memory with what is remembered."""
    many = {(f"{number}", right) for number in range(1000) for right in ON_JOBS}
    decisions = 200
    began = time.process_time()
    for number in range(decisions):
        asked = Resource(On.JOB, f"{number}", OWNER, frozenset(many | {(OTHER.id, "stop")}))
        assert default.decide(who(), "stop", asked).permitted
        assert not default.decide(who(), "status", asked).permitted
    assert (time.process_time() - began) / decisions < 0.05


def test_what_callers_make_up_is_not_kept_in_memory(default: Policies) -> None:
    default.decide(who(), "run-as", Resource(On.ACCOUNT, "account"))
    tracemalloc.start()
    try:
        for number in range(20):
            assert not default.decide(who(), "run-as", Resource(On.ACCOUNT, f"{number}" * 500_000)).permitted
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()
