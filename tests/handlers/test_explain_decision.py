"""ExplainDecision."""

from collections.abc import Iterator

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import USER, Daemon, running_daemon
from workerctl.errors import ArgumentInvalid, CallFailed

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
            for client in (owner, admin) if user else (owner,):
                if user == "ada":
                    await admin.whoami()
                answer = await client.explain(right, user=user, job_id=job_id)
                assert (answer.permitted, answer.policies) == (permitted, by)
                assert answer.user is not None
                assert (answer.user.name, answer.roles) == (user or USER, ["admin"] if user == "ada" else [])


async def test_further_policies_count_only_for_the_answer(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client("bob") as bob:
        job_id = await owner.spawn(TRUE)
        answer = await owner.explain("status", user="bob", job_id=job_id, policies=EVERYTHING)
        assert (answer.permitted, answer.policies) == (True, ["yours:all"])
        with pytest.raises(CallFailed) as raised:
            await bob.status(job_id)
        assert raised.value.reason is ErrorReason.JOB_NOT_FOUND
        answer = await owner.explain("status", job_id=job_id, policies=NOTHING)
        assert (answer.permitted, answer.policies) == (False, ["yours:none"])
        assert (await owner.status(job_id)).id == job_id


async def test_policies_do_not_let_anybody_explain(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client("bob") as bob:
        job_id = await owner.spawn(TRUE)
        for job, reason in ((job_id, ErrorReason.JOB_NOT_FOUND), (None, ErrorReason.NOT_PERMITTED)):
            with pytest.raises(CallFailed) as raised:
                await bob.explain("status", job_id=job, policies=EVERYTHING)
            assert raised.value.reason is reason


@pytest.mark.parametrize(
    ("right", "target", "permitted"), [("run-as", "root", True), ("impersonate", "bob", True), ("spawn", "", True)]
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
    async with ruled.client() as owner:
        job_id = await owner.spawn(TRUE)
        with pytest.raises(ArgumentInvalid) as raised:
            await owner.explain("stop", job_id=job_id, policies=policies)
        assert raised.value.status is Status.INVALID_ARGUMENT
        assert str(raised.value).startswith("policies ")
        assert (await owner.status(job_id)).id == job_id  # the daemon is still there


async def test_a_policy_that_cannot_be_evaluated_denies(ruled: Daemon) -> None:
    async with ruled.client() as owner:
        job_id = await owner.spawn(TRUE)
        policies = "permit (principal, action, resource) when { 9223372036854775807 + 1 > 0 };"
        assert not (await owner.explain("stop", job_id=job_id, policies=policies)).permitted
