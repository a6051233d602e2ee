"""ExplainDecision."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import USER, Daemon, running_daemon
from workerctl.client import Client
from workerctl.errors import ArgumentInvalid, CallFailed
from workerctl.target import Target

ADMIN = "ada"
TRUE = SpawnRequest(program="true")
EVERYTHING = '@id("all") permit (principal, action, resource);'
NOTHING = '@id("none") forbid (principal, action, resource);'


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with an administrator, which has seen another user."""
    daemon = Daemon(tmp_path_factory.mktemp("ruled") / "state")
    for name in (ADMIN, "bob"):
        daemon.pki.issue_client(name)
    with running_daemon(daemon.state, "--roles.admin", ADMIN) as running:
        assert running.workerctl("whoami", user="bob").returncode == 0
        yield running


async def test_it_decides_as_a_call_would_be_decided(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client(ADMIN) as admin:
        job_id = await owner.spawn(TRUE)
        await owner.share(job_id, "bob", {"stop"})
        for right, user, permitted, by in (
            ("stop", "", True, ["default.cedar:owner"]),
            ("stop", "bob", True, ["default.cedar:shared"]),
            ("status", "bob", False, []),
            ("status", "ada", True, ["default.cedar:admin"]),
            ("show-envs", "ada", False, ["default.cedar:envs-are-the-owners"]),
        ):
            client = admin if user else owner
            await admin.whoami()
            answer = await client.explain(right, user=user, job_id=job_id)
            assert (answer.permitted, answer.policies) == (permitted, by)
            assert answer.user is not None
            assert (answer.user.name, answer.roles) == (user or USER, ["admin"] if user == "ada" else [])


async def test_nobody_is_told_of_another_user_without_the_right_to_explain(ruled: Daemon) -> None:
    """Neither the id, nor the roles, nor whether the user exists: the answers are equal."""
    async with ruled.client() as owner, ruled.client(ADMIN) as admin, ruled.client("bob") as bob:
        job_id = await owner.spawn(TRUE)
        known = [each.user for each in (await admin.whoami(), await bob.whoami())]
        names = ["nobody", ADMIN, *(text for user in known if user is not None for text in (user.id, user.name))]
        told = set()
        for name in names:
            for right in ("stop", "show-envs"):
                with pytest.raises(CallFailed) as raised:
                    await owner.explain(right, user=name, job_id=job_id)
                told.add((raised.value.status, raised.value.reason, str(raised.value)))
        assert len(told) == 1
        assert told.pop()[1] is ErrorReason.NOT_PERMITTED


async def test_everybody_is_told_of_themselves_by_name_and_id(ruled: Daemon) -> None:
    async with ruled.client() as owner:
        me = (await owner.whoami()).user
        assert me is not None
        job_id = await owner.spawn(TRUE)
        for user in ("", me.name, me.id):
            answer = await owner.explain("stop", user=user, job_id=job_id)
            assert (answer.permitted, answer.user, answer.roles) == (True, me, [])


async def test_further_policies_count_only_for_the_answer(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client("bob") as bob, ruled.client(ADMIN) as admin:
        job_id = await owner.spawn(TRUE)
        answer = await admin.explain("status", user="bob", job_id=job_id, policies=EVERYTHING)
        assert (answer.permitted, answer.policies) == (True, ["stdin:all"])
        with pytest.raises(CallFailed) as raised:
            await bob.status(job_id)
        assert raised.value.reason is ErrorReason.JOB_NOT_FOUND
        answer = await admin.explain("status", user=USER, job_id=job_id, policies=NOTHING)
        assert (answer.permitted, answer.policies) == (False, ["stdin:none"])
        assert (await owner.status(job_id)).id == job_id


async def test_further_policies_take_the_place_of_a_file_of_their_name(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client(ADMIN) as admin:
        job_id = await owner.spawn(TRUE)
        for name, permitted, by in (
            ("", True, ["default.cedar:owner"]),
            ("mine.cedar", True, ["default.cedar:owner"]),
            ("default.cedar", False, []),
        ):
            answer = await admin.explain("stop", user=USER, job_id=job_id, policies="// nothing", policies_name=name)
            assert (answer.permitted, answer.policies) == (permitted, by)
        assert (
            await admin.explain("stop", user=USER, job_id=job_id, policies=EVERYTHING, policies_name="mine.cedar")
        ).policies == [
            "default.cedar:owner",
            "mine.cedar:all",
        ]
        for name in ("a/b", "x" * 256):
            with pytest.raises(ArgumentInvalid, match="must be the name of a file without its folder"):
                await admin.explain("stop", job_id=job_id, policies=EVERYTHING, policies_name=name)


async def test_of_whoever_names_nobody_it_is_decided_as_of_this_call(ruled: Daemon, tmp_path: Path) -> None:
    """For another user, and with what the certificate is good for."""
    async with ruled.client() as owner:
        job_id = await owner.spawn(TRUE)
    async with Client(Target(ruled.endpoint, USER, ruled.pki.path, ADMIN)) as acting:
        for user, permitted, by in (
            ("", False, "default.cedar:envs-are-the-owners"),
            (USER, True, "default.cedar:owner"),
        ):
            answer = await acting.explain("show-envs", user=user, job_id=job_id)
            assert (answer.permitted, answer.policies) == (permitted, [by])
            assert answer.user is not None and answer.user.name == USER
    issued = ruled.workerctl("credential", "issue", "--allow", "explain,status", "--out", str(tmp_path / "narrowed"))
    assert issued.returncode == 0, issued.stderr
    async with Client(Target(ruled.endpoint, USER, tmp_path / "narrowed")) as narrowed:
        for right, user, permitted, by in (
            ("stop", "", False, "certificate"),
            ("stop", USER, True, "default.cedar:owner"),
            ("status", "", True, "default.cedar:owner"),
        ):
            answer = await narrowed.explain(right, user=user, job_id=job_id)
            assert (answer.permitted, answer.policies) == (permitted, [by])


async def test_what_a_right_is_exercised_on_is_told_with_the_fields_for_it(ruled: Daemon) -> None:
    async with ruled.client(ADMIN) as admin:
        job_id = await admin.spawn(TRUE)
        for right, job, target, told in (
            ("spawn", job_id, "", "on the daemon itself: leave `job_id` and `target` out"),
            ("stop", None, "", "on a job: name it in `job_id`"),
            (
                "run-as",
                job_id,
                "",
                "on a system account: name it in `target`, or leave that out for the default one; leave `job_id` out",
            ),
            ("impersonate", None, "", "on another user: name them in `target`, and leave `job_id` out"),
            (
                "explain",
                None,
                "bob",
                "on the daemon itself: leave `job_id` and `target` out; or on a job: name it in `job_id`",
            ),
        ):
            with pytest.raises(ArgumentInvalid) as raised:
                await admin.explain(right, job_id=job, target=target)
            assert str(raised.value) == f"right '{right}' is exercised {told}"


async def test_policies_do_not_let_anybody_explain(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client("bob") as bob:
        job_id = await owner.spawn(TRUE)
        for job, reason in ((job_id, ErrorReason.JOB_NOT_FOUND), (None, ErrorReason.NOT_PERMITTED)):
            with pytest.raises(CallFailed) as raised:
                await bob.explain("status", job_id=job, policies=EVERYTHING)
            assert raised.value.reason is reason


@pytest.mark.parametrize(
    ("right", "target", "permitted"), [("run-as", "another", True), ("impersonate", "bob", True), ("spawn", "", True)]
)
async def test_an_administrator_asks_of_what_is_no_job(ruled: Daemon, right: str, target: str, permitted: bool) -> None:
    async with ruled.client(ADMIN) as admin:
        assert (await admin.explain(right, target=target)).permitted is permitted
        answer = await admin.explain(right, target=target, user="bob")
        assert answer.permitted is (right == "spawn")


@pytest.mark.parametrize(
    "policies",
    [
        "permit (",
        "permit (principal == ?principal, action, resource);",
        "x" * (1 << 14) + "x",
        f"permit (principal, action, resource) when {{ {'(' * 4000}",
        f"permit (principal, action, resource) when {{ {'[' * 4000}1{']' * 4000} == [] }};",
        f"permit (principal, action, resource) when {{ {' || '.join(['false'] * 1500)} }};",
        f"permit (principal, action, resource) when {{ {'1+' * 7000}1 > 0 }};",
    ],
    ids=["syntax", "template", "long", "open brackets", "brackets", "alternatives", "sum"],
)
async def test_policies_that_cannot_be_used_are_an_invalid_argument_and_do_no_harm(
    ruled: Daemon, policies: str
) -> None:
    async with ruled.client() as owner, ruled.client(ADMIN) as admin:
        job_id = await owner.spawn(TRUE)
        with pytest.raises(ArgumentInvalid) as raised:
            await admin.explain("stop", job_id=job_id, policies=policies)
        assert raised.value.status is Status.INVALID_ARGUMENT
        assert str(raised.value).startswith("policies ")
        assert (await owner.status(job_id)).id == job_id  # the daemon is still there


async def test_a_policy_that_cannot_be_evaluated_denies(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client(ADMIN) as admin:
        job_id = await owner.spawn(TRUE)
        policies = "permit (principal, action, resource) when { 9223372036854775807 + 1 > 0 };"
        denied = await admin.explain("stop", user="bob", job_id=job_id, policies=policies)
        assert not denied.permitted
        with pytest.raises(CallFailed) as raised:
            await owner.explain("stop", job_id=job_id, policies=policies)
        assert raised.value.reason is ErrorReason.NOT_PERMITTED  # trying policies is not for every owner of a job
