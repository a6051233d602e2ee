"""Roles, shares and policies, as users meet them."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, JobState, SpawnRequest

from tests.daemon import USER, Daemon, running_daemon
from tests.system.test_reload import wait_told
from workerctl.client import Client
from workerctl.errors import CallFailed, JobNotFound
from workerctl.events import LogEvent, Output

ADMIN, VIEWER, OTHER = "ada", "vera", "bob"
SOON_SECONDS = 20
SPINNER = SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"])
BOB_MAY_FOLLOW = 'permit (principal, action == Action::"stream-log", resource is Job) when { principal.name == "bob" };'


def prepared(state: Path) -> Daemon:
    """Make a daemon's folder with certificates for everybody."""
    daemon = Daemon(state)
    for name in (ADMIN, VIEWER, OTHER):
        daemon.pki.issue_client(name)
    return daemon


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with an administrator and a viewer."""
    state = tmp_path_factory.mktemp("ruled") / "state"
    prepared(state)
    with running_daemon(state, "--roles.admin", ADMIN, "--roles.viewer", VIEWER) as daemon:
        yield daemon


@pytest.fixture(params=["1", "3"], ids=["one process", "several processes"])
def shareable(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon of each kind, with users."""
    prepared(tmp_path / "state")
    options = ("--roles.admin", ADMIN, "--processes", request.param)
    with running_daemon(tmp_path / "state", *options) as daemon:
        yield daemon


async def introduce(daemon: Daemon, *users: str) -> dict[str, str]:
    """Have users call for the first time, and give their ids."""
    ids = {}
    for name in users:
        async with daemon.client(name) as client:
            me = (await client.whoami()).user
        assert me is not None
        ids[name] = me.id
    return ids


async def roles_of(daemon: Daemon, user: str) -> list[str]:
    """Ask for a user's roles."""
    async with daemon.client(user) as client:
        return (await client.whoami()).roles


@contextlib.asynccontextmanager
async def followed(client: Client, job_id: str) -> AsyncIterator["asyncio.Task[list[LogEvent]]"]:
    """Follow a job's log; its first output has come."""
    ready = asyncio.Event()

    async def follow() -> list[LogEvent]:
        events = []
        async with contextlib.aclosing(client.stream_log(job_id)) as log:
            async for event in log:
                events.append(event)
                ready.set()
        return events

    task = asyncio.create_task(follow())
    try:
        async with asyncio.timeout(SOON_SECONDS):
            await ready.wait()
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def failure_of(task: "asyncio.Task[list[LogEvent]]") -> CallFailed:
    """Wait until a follower is cut off, and give what it was told."""
    async with asyncio.timeout(SOON_SECONDS):
        with pytest.raises(CallFailed) as raised:
            await task
    return raised.value


async def refusal_of(client: Client, job_id: str) -> CallFailed:
    """Try to read a log, and give what that is refused with."""
    with pytest.raises(CallFailed) as raised:
        async for _ in client.stream_log(job_id, follow=False):
            pass
    return raised.value


def told(failure: CallFailed) -> tuple[Status, ErrorReason, str]:
    """Give all that somebody is told."""
    return failure.status, failure.reason, str(failure)


@pytest.mark.parametrize("way", ["option", "environment", "file"])
async def test_roles_are_given_by_option_environment_and_file(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = prepared(tmp_path / "state")
    user_id = "22222222-2222-4222-8222-222222222222"
    daemon.pki.issue_client("carol", user_id=user_id)
    options: tuple[str, ...] = ()
    match way:
        case "option":
            options = ("--roles.admin", ADMIN, "--roles.admin", user_id, "--roles.viewer", VIEWER)
        case "environment":
            monkeypatch.setenv("WORKERD_ROLES_ADMIN", f"{ADMIN}, {user_id}")
            monkeypatch.setenv("WORKERD_ROLES_VIEWER", VIEWER)
        case "file":
            file = tmp_path / "workerd.toml"
            file.write_text(f'[roles]\nadmin = ["{ADMIN}", "{user_id}"]\nviewer = ["{VIEWER}"]\n')
            options = ("--config", str(file))
    with running_daemon(daemon.state, *options) as running:
        found = {name: await roles_of(running, name) for name in (ADMIN, VIEWER, OTHER, "carol")}
    assert found == {ADMIN: ["admin"], VIEWER: ["viewer"], OTHER: [], "carol": ["admin"]}


def test_a_daemon_whose_policies_cannot_be_used_does_not_start(tmp_path: Path) -> None:
    daemon = prepared(tmp_path / "state")
    (daemon.state / "policies").mkdir()
    (daemon.state / "policies" / "mine.cedar").write_text(
        '@id("x") permit (principal, action == Action::"fly", resource);'
    )
    for processes in ("1", "2"):
        options = ("--state-dir", str(daemon.state), "--listen", "127.0.0.1:0", "--processes", processes)
        command = [sys.executable, "-m", "workerd", *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, result.stdout) == (1, "")
        assert re.search(r"^workerd: .*mine\.cedar:x: unrecognized action", result.stderr, re.MULTILINE)


async def test_what_roles_are_good_for(ruled: Daemon) -> None:
    async with ruled.client() as owner, ruled.client(VIEWER) as viewer, ruled.client(ADMIN) as admin:
        job_id = await owner.spawn(SPINNER)
        for other in (viewer, admin):
            assert (await other.status(job_id)).id == job_id
        refused = [
            (viewer.stop(job_id), "stop"),
            (viewer.remove(job_id), "remove"),
            (viewer.spawn(SPINNER), "spawn"),
            (viewer.share(job_id), "share"),
            (viewer.status(job_id, show_envs=True), "show-envs"),
            (admin.status(job_id, show_envs=True), "show-envs"),
        ]
        for call, right in refused:
            with pytest.raises(CallFailed) as raised:
                await call
            assert raised.value.reason is ErrorReason.NOT_PERMITTED
            assert str(raised.value).startswith(f"you have no right to {right}:")
        assert (await owner.status(job_id, show_envs=True)).id == job_id
        assert (await admin.stop(job_id)).state in (JobState.STOPPING, JobState.ENDED)


async def test_shared_job_is_seen_and_read_and_no_more(shareable: Daemon) -> None:
    ids = await introduce(shareable, OTHER, VIEWER)
    async with shareable.client() as owner:
        job_id = await owner.spawn(SPINNER)
    given = shareable.workerctl("share", job_id, "--with", OTHER, "--allow", "status, stream-log", "--output", "json")
    assert json.loads(given.stdout) == [{"user": {"id": ids[OTHER], "name": OTHER}, "rights": ["status", "stream-log"]}]
    assert shareable.workerctl("status", "--uuid", job_id, user=OTHER).returncode == 0
    read = shareable.workerctl("stream-log", "--past-events", "--no-follow", "--uuid", job_id, user=OTHER)
    assert (read.returncode, read.stdout) == (0, b"ready\n")
    for arguments, right in (
        (("stop", "--uuid", job_id), "stop"),
        (("remove", "--uuid", job_id), "remove"),
        (("share", job_id), "share"),
    ):
        result = shareable.workerctl(*arguments, user=OTHER)
        assert (result.returncode, result.stdout) == (125, b""), result.stderr
        assert f"you have no right to {right}".encode() in result.stderr
        assert shareable.workerctl(*arguments, user=VIEWER).returncode == 123
    shown = shareable.workerctl("share", job_id)
    assert OTHER.encode() in shown.stdout
    assert b"status, stream-log" in shown.stdout
    assert shareable.workerctl("share", job_id, "--with", OTHER, "--revoke").returncode == 0
    assert shareable.workerctl("status", "--uuid", job_id, user=OTHER).returncode == 123


async def test_whoever_follows_is_cut_off_when_the_share_is_taken_back(shareable: Daemon) -> None:
    """Through whichever process it is taken back; in the words of a new call. The others read on."""
    await introduce(shareable, OTHER, VIEWER, ADMIN)
    async with shareable.client() as owner, shareable.client(OTHER) as other, shareable.client(ADMIN) as admin:
        job_id = await owner.spawn(SPINNER)
        for lost, words in (
            ({"status", "stream-log"}, ErrorReason.JOB_NOT_FOUND),
            ({"stream-log"}, ErrorReason.NOT_PERMITTED),
        ):
            await owner.share(job_id, OTHER, {"status", "stream-log"})
            async with (
                followed(owner, job_id) as owners,
                followed(other, job_id) as others,
                followed(admin, job_id) as theirs,
            ):
                await owner.share(job_id, VIEWER, {"status"})  # which is nothing to the others
                await owner.share(job_id, VIEWER)
                async with shareable.client() as again:
                    await again.share(job_id, OTHER, {"status", "stream-log"} - lost)
                failure = await failure_of(others)
                assert failure.reason is words
                assert told(failure) == told(await refusal_of(other, job_id))
                assert not owners.done()
                assert not theirs.done()
        assert (await owner.status(job_id)).state is JobState.RUNNING


async def test_whoever_follows_is_cut_off_when_a_policy_is_taken_back(shareable: Daemon) -> None:
    folder = shareable.state / "policies"
    folder.mkdir()
    async with shareable.client() as owner, shareable.client(OTHER) as other:
        await introduce(shareable, OTHER)
        job_id = await owner.spawn(SPINNER)
        (folder / "mine.cedar").write_text(BOB_MAY_FOLLOW)
        wait_told(shareable, "policies were changed and are in force")
        async with asyncio.timeout(SOON_SECONDS):
            while True:
                with contextlib.suppress(JobNotFound):
                    async with followed(other, job_id) as others, followed(owner, job_id) as owners:
                        (folder / "mine.cedar").write_text("permit (")
                        wait_told(shareable, "policies were changed and cannot be used")
                        assert not others.done()
                        (folder / "mine.cedar").unlink()
                        assert isinstance(await failure_of(others), JobNotFound)
                        assert not owners.done()
                    return


async def test_a_share_counts_whatever_is_printed_meanwhile(shareable: Daemon) -> None:
    """What is asked again is asked when shares change, not with each output."""
    await introduce(shareable, OTHER)
    async with shareable.client() as owner, shareable.client(OTHER) as other:
        job_id = await owner.spawn(SpawnRequest(program="sh", args=["-c", "yes | head -c 3000000; echo end"]))
        await owner.share(job_id, OTHER, {"stream-log"})
        events = [event async for event in other.stream_log(job_id)]
    assert sum(len(event.data) for event in events if isinstance(event, Output)) == 3_000_004


@pytest.mark.parametrize("output", ["text", "json"])
async def test_policy_test_explains_a_decision(ruled: Daemon, tmp_path: Path, output: str) -> None:
    ids = await introduce(ruled, OTHER, VIEWER, ADMIN)
    async with ruled.client() as owner:
        job_id = await owner.spawn(SPINNER)
    new = tmp_path / "new.cedar"
    new.write_text(
        '@id("b") permit (principal, action == Action::"stop", resource is Job) when { principal.name == "bob" };'
    )

    def test(*arguments: str, user: str = USER) -> tuple[int, str]:
        result = ruled.workerctl("policy", "test", *arguments, "--output", output, user=user)
        assert result.stderr == b""
        return result.returncode, result.stdout.decode()

    asked = ("--as", OTHER, "--action", "stop", "--job", job_id)
    code, denied = test(*asked)
    assert code == 1
    code, permitted = test(str(new), *asked)
    assert code == 0
    code, by_id = test(str(new), "--as", ids[OTHER], *asked[2:], user=ADMIN)
    assert (code, by_id) == (0, permitted)
    code, owners = test("--action", "stop", "--job", job_id)
    assert code == 0
    if output == "text":
        assert denied.splitlines()[0].startswith("denied: bob, stop ")
        assert "no policy" in denied
        assert "decided by: new.cedar:b" in permitted
        assert "decided by: default.cedar:owner" in owners
    else:
        assert "permitted" not in json.loads(denied) or json.loads(denied)["permitted"] is False
        assert json.loads(permitted)["policies"] == ["new.cedar:b"]
        assert json.loads(owners)["user"]["name"] == USER
    assert ruled.workerctl("status", "--uuid", job_id).returncode == 0  # nothing was done
    assert b"running" in ruled.workerctl("status", "--uuid", job_id).stdout


@pytest.mark.parametrize("place", [("-",), ("--file", "-"), ("--file=-",)], ids=" ".join)
def test_policy_test_takes_policies_from_standard_input(ruled: Daemon, place: tuple[str, ...]) -> None:
    command = ruled.command("policy", "test", *place, "--action", "spawn", user=ADMIN)
    text = b'@id("no") forbid (principal, action == Action::"spawn", resource);'
    result = subprocess.run(command, input=text, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (1, b"")
    assert b"decided by: stdin:no\n" in result.stdout


def test_policy_test_puts_a_file_in_the_place_of_one_of_its_name(ruled: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "default.cedar"
    file.write_text('@id("mine") permit (principal in Role::"admin", action == Action::"list", resource);')
    for action, code, by in (("list", 0, "default.cedar:mine"), ("spawn", 1, "no policy")):
        result = ruled.workerctl("policy", "test", str(file), "--action", action, user=ADMIN)
        assert (result.returncode, result.stderr) == (code, b"")
        assert f"decided by: {by}" in result.stdout.decode()


async def test_policy_test_refuses_what_cannot_be_asked(ruled: Daemon, tmp_path: Path) -> None:
    await introduce(ruled, OTHER)
    async with ruled.client() as owner:
        job_id = await owner.spawn(SPINNER)
    files = {
        "bad": b"permit (",
        "bytes": b"\xff",
        "long": b"//" + b"x" * (1 << 14),
        "deep": b"permit (principal, action, resource) when {" + b"(" * 8000,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    asked = ("--action", "stop", "--job", job_id)
    for arguments, user, code, words in (
        ((str(tmp_path / "bad"), *asked), USER, 2, b"policies in bad cannot be used: line 1: unexpected end of input"),
        ((str(tmp_path / "bytes"), *asked), USER, 2, b"is not UTF-8"),
        ((str(tmp_path / "long"), *asked), USER, 2, b"are longer than"),
        ((str(tmp_path / "deep"), *asked), USER, 2, b"brackets are open at one place"),
        ((str(tmp_path / "none"), *asked), USER, 125, b"No such file"),
        (("--nosuch", *asked), USER, 2, b"there is no option --nosuch"),
        (("--as", "nobody", *asked), USER, 125, b"'nobody' names no user"),
        (("--action", "fly", "--job", job_id), USER, 2, b"'fly' is none that this daemon knows"),
        (("--action", "stop"), ADMIN, 2, b"is exercised on a job"),
        (asked, OTHER, 123, b"there is no job"),
        (("--as", USER, *asked), OTHER, 123, b"there is no job"),
        (asked, VIEWER, 125, b"you have no right to explain"),
        (("--action", "spawn"), OTHER, 125, b"you have no right to explain"),
    ):
        result = ruled.workerctl("policy", "test", *arguments, user=user)
        assert (result.returncode, result.stdout) == (code, b""), (arguments, result.stderr)
        assert words in result.stderr, (arguments, result.stderr)
        assert result.stderr.count(b"\n") == 1
    assert ruled.workerctl("whoami").returncode == 0
