"""The account that a job runs as is decided on and audited, whether or not the spawn names it."""

import asyncio
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, SpawnRequest, Stream

from tests.daemon import USER, Daemon, running_daemon
from tests.narrowing import narrow
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.events import Output
from workerctl.target import Target

OWN = pwd.getpwuid(os.geteuid()).pw_name
ADMIN, DOTTED = "operator", "first.last"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take on another account")


def forbid(state: Path, account: str) -> None:
    """Forbid an account by a policy."""
    folder = state / "policies"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.cedar").write_text(
        f'@id("not-as") forbid (principal, action == Action::"run-as", resource == Account::"{account}");'
    )


def trail(daemon: Daemon, **fields: str) -> list[dict[str, Any]]:
    """Return the lines of the audit trail that have these values."""
    result = daemon.workerctl("audit", "show", str(daemon.state), "--output", "json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return [line for line in lines if all(line.get(name) == value for name, value in fields.items())]


def other_accounts(count: int) -> list[str]:
    """Return accounts besides root's."""
    return [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != 0][:count]


def wish(run_as: str = "", request_key: str = "") -> SpawnRequest:
    return SpawnRequest(program="id", args=["-un"], working_directory="/", run_as=run_as, request_key=request_key)


async def ran_as(client: Client, job_id: str) -> str:
    """Return the account that a job ran as, as its program sees it."""
    events = client.stream_log(job_id, streams=[Stream.STDOUT])
    printed = b"".join([event.data async for event in events if isinstance(event, Output)])
    account = printed.decode().strip()
    assert (await client.status(job_id)).run_as == account
    return account


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_policy_about_an_account_holds_also_where_no_spawn_names_it(tmp_path: Path, processes: str) -> None:
    forbid(tmp_path / "state", OWN)
    with running_daemon(tmp_path / "state", "--processes", processes, "--roles.admin", ADMIN) as daemon:
        daemon.pki.issue_client(ADMIN)
        for user in (USER, ADMIN):
            async with daemon.client(user) as client:
                for run_as in ("", OWN):
                    with pytest.raises(CallFailed, match=f"no right to run-as {OWN}, which your jobs run as") as denial:
                        await client.spawn(wish(run_as))
                    assert denial.value.status is Status.PERMISSION_DENIED
                    assert denial.value.reason is ErrorReason.NOT_PERMITTED
        assert [*(daemon.state / "jobs").iterdir()] == []
        denied = trail(daemon, event="decision", action="run-as")
        assert {(line["account"], line["verdict"], *line["policies"]) for line in denied} == {
            (OWN, "deny", "site.cedar:not-as")
        }


async def test_the_trail_names_the_account_of_every_spawn(any_daemon: Daemon) -> None:
    async with any_daemon.client() as client:
        job_id = await client.spawn(wish())
        with pytest.raises(CallFailed):
            await client.spawn(SpawnRequest(program="true", working_directory="/nowhere"))
    decisions = trail(any_daemon, event="decision", action="run-as", account=OWN)
    assert [line["verdict"] for line in decisions] == ["permit", "permit"]
    assert [line["policies"] for line in decisions] == [["default.cedar:default-account"]] * 2
    assert [line["job_id"] for line in trail(any_daemon, event="job-spawned", account=OWN)] == [job_id]
    [failed] = trail(any_daemon, event="failed", action="spawn", account=OWN)
    assert failed["reason"] == "WORKING_DIRECTORY_UNUSABLE"


async def test_a_certificate_that_is_good_for_spawning_is_so_for_the_default_account_alone(
    tmp_path: Path,
) -> None:
    with running_daemon(tmp_path / "state", "--roles.admin", USER) as daemon:
        async with daemon.client() as client:
            target = await narrow(client, daemon, tmp_path / "narrowed", {"spawn", "status", "stream-log"})
        async with Client(target) as narrowed:
            assert await ran_as(narrowed, await narrowed.spawn(wish())) == OWN
            with pytest.raises(CallFailed, match="you have no right to run-as: your certificate is good for"):
                await narrowed.spawn(wish("no-such-account"))


def test_an_explanation_has_the_decision_on_the_account(tmp_path: Path) -> None:
    forbid(tmp_path / "state", OWN)
    with running_daemon(tmp_path / "state", "--roles.admin", ADMIN) as daemon:
        daemon.pki.issue_client(ADMIN)
        assert daemon.workerctl("whoami").returncode == 0
        asked = ("policy", "test", "--as", USER, "--action")
        spawn = daemon.workerctl(*asked, "spawn", user=ADMIN)
        assert spawn.returncode == 1
        assert spawn.stdout.decode().splitlines() == [
            f"denied: {USER}, spawn",
            "roles: none",
            "decided by: default.cedar:spawner",
            f"run-as {OWN}: denied, decided by: site.cedar:not-as",
        ]
        run_as = daemon.workerctl(*asked, "run-as", user=ADMIN)
        assert run_as.returncode == 1
        assert run_as.stdout.decode().splitlines() == [
            f"denied: {USER}, run-as {OWN}",
            "roles: none",
            "decided by: site.cedar:not-as",
        ]
        shown = daemon.workerctl(*asked, "spawn", "--output", "json", user=ADMIN)
        assert json.loads(shown.stdout)["account"]["account"] == OWN


def test_a_user_is_told_which_account_their_jobs_run_as_if_they_may_start_any(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state", "--roles.viewer", "vera") as daemon:
        daemon.pki.issue_client("vera")
        assert f"jobs run as: {OWN}\n".encode() in daemon.workerctl("whoami").stdout
        assert b"jobs run as" not in daemon.workerctl("whoami", user="vera").stdout
        job_id = daemon.workerctl("spawn", "--", "true").stdout.decode().strip()
        assert f"runs as:    {OWN}\n".encode() in daemon.workerctl("status", job_id).stdout


@as_root
@pytest.mark.parametrize("processes", ["1", "2"])
async def test_jobs_run_as_the_account_of_their_owner(tmp_path: Path, processes: str) -> None:
    """By name, by id, or else as the default account; in a call for another user, as the account of that user."""
    for_all, by_name, by_id, by_dotted = other_accounts(4)
    daemon = Daemon(tmp_path / "state")
    for user in (ADMIN, DOTTED, "bob"):
        daemon.pki.issue_client(user)
    file = tmp_path / "workerd.toml"
    with running_daemon(tmp_path / "state") as running:
        async with running.client("bob") as client:
            bob = (await client.whoami()).user
    assert bob is not None
    file.write_text(
        f'run-as = "{for_all}"\n[accounts]\n{USER} = "{by_name}"\n{bob.id.upper()} = "{by_id}"\n'
        f'"{DOTTED}" = "{by_dotted}"\n'
    )
    options = ("--config", str(file), "--processes", processes, "--roles.admin", ADMIN)
    with running_daemon(tmp_path / "state", *options) as daemon:
        for user, account in ((USER, by_name), ("bob", by_id), (DOTTED, by_dotted), (ADMIN, for_all)):
            async with daemon.client(user) as client:
                assert (await client.whoami()).run_as == account
                assert await ran_as(client, await client.spawn(wish())) == account
        async with daemon.client() as client:
            assert await ran_as(client, await client.spawn(wish(by_name))) == by_name
            with pytest.raises(CallFailed, match=f"no right to run-as {for_all}: leave `run_as` out"):
                await client.spawn(wish(for_all))
        async with Client(Target(daemon.endpoint, USER, daemon.pki.path, certificate=ADMIN)) as acting:
            assert await ran_as(acting, await acting.spawn(wish())) == by_name
            with pytest.raises(CallFailed, match="no right to run-as root"):
                await acting.spawn(wish("root"))


@as_root
async def test_a_repeated_spawn_finds_its_job_after_its_owner_got_another_account(tmp_path: Path) -> None:
    before, after = other_accounts(2)
    request = wish(request_key="once")
    with running_daemon(tmp_path / "state", f"--accounts.{USER}", before) as daemon:
        async with daemon.client() as client:
            job_id = await client.spawn(request)
            assert await ran_as(client, job_id) == before
    with running_daemon(tmp_path / "state", f"--accounts.{USER}", after) as daemon:
        async with daemon.client() as client:
            assert await client.spawn(request) == job_id
            assert await ran_as(client, job_id) == before
            assert await ran_as(client, await client.spawn(wish())) == after
        spawned = [(line["job_id"] == job_id, line["account"]) for line in trail(daemon, event="job-spawned")]
        assert spawned == [(True, before), (True, before), (False, after)]
        decisions = await asyncio.to_thread(trail, daemon, event="decision", action="run-as")
        assert [line["account"] for line in decisions] == [before, after, after]


@as_root
def test_each_account_without_a_home_is_told_at_the_start(tmp_path: Path) -> None:
    homeless = [entry for entry in pwd.getpwall() if entry.pw_uid != 0 and not os.path.isdir(entry.pw_dir)]
    if not homeless:
        pytest.skip("every account has a home directory")
    with running_daemon(tmp_path / "state", "--accounts.bob", homeless[0].pw_name) as daemon:
        assert f"account={homeless[0].pw_name} home={homeless[0].pw_dir}" in daemon.errors()
