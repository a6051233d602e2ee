"""`workerctl policy test`, as users and operators meet it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_api.worker.v1 import SpawnRequest

from tests.daemon import USER, Daemon, running_daemon

ADMIN, VIEWER, OTHER = "ada", "vera", "bob"
SPINNER = SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"])


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with an administrator, a viewer and somebody else, who have all been there."""
    state = tmp_path_factory.mktemp("ruled") / "state"
    with running_daemon(state, "--roles.admin", ADMIN, "--roles.viewer", VIEWER) as daemon:
        for name in (ADMIN, VIEWER, OTHER):
            daemon.pki.issue_client(name)
            assert daemon.workerctl("whoami", user=name).returncode == 0
        yield daemon


@pytest.mark.parametrize("output", ["text", "json"])
async def test_policy_test_explains_a_decision(ruled: Daemon, tmp_path: Path, output: str) -> None:
    async with ruled.client() as owner, ruled.client(OTHER) as other:
        user = (await other.whoami()).user
        job_id = await owner.spawn(SPINNER)
    assert user is not None
    new = tmp_path / "new.cedar"
    new.write_text(
        '@id("b") permit (principal, action == Action::"stop", resource is Job) when { principal.name == "bob" };'
    )

    def test(*arguments: str, user: str = USER) -> tuple[int, str]:
        result = ruled.workerctl("policy", "test", *arguments, "--output", output, user=user)
        assert result.stderr == b""
        return result.returncode, result.stdout.decode()

    asked = ("--as", OTHER, "--action", "stop", "--job", job_id)
    code, denied = test(*asked, user=ADMIN)
    assert code == 1
    code, permitted = test(str(new), *asked, user=ADMIN)
    assert code == 0
    code, by_id = test(str(new), "--as", user.id, *asked[2:], user=ADMIN)
    assert (code, by_id) == (0, permitted)
    code, owners = test("--action", "stop", "--job", job_id)
    assert code == 0
    if output == "text":
        assert denied.splitlines()[0].startswith("denied: bob, stop ")
        assert "no policy" in denied
        assert "decided by: new.cedar:b" in permitted
        assert "decided by: default.cedar:owner" in owners
    else:
        assert json.loads(denied)["permitted"] is False
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
    file.write_text('@id("mine") permit (principal in Role::"admin", action == Action::"explain", resource);')
    for action, code, by in (("explain", 0, "default.cedar:mine"), ("spawn", 1, "no policy")):
        result = ruled.workerctl("policy", "test", str(file), "--action", action, user=ADMIN)
        assert (result.returncode, result.stderr) == (code, b"")
        assert f"decided by: {by}" in result.stdout.decode()


async def test_policy_test_refuses_what_cannot_be_asked(ruled: Daemon, tmp_path: Path) -> None:
    async with ruled.client() as owner:
        job_id = await owner.spawn(SPINNER)
    files = {
        "bad": b"permit (",
        "bytes": b"\xff",
        "empty": b"",
        "long": b"//" + b"x" * (1 << 14),
        "deep": b"permit (principal, action, resource) when {" + b"(" * 8000,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    asked = ("--action", "stop", "--job", job_id)
    for arguments, user, code, words in (
        ((str(tmp_path / "bad"), *asked), ADMIN, 2, b"policies in bad cannot be used: line 1: unexpected end of input"),
        ((str(tmp_path / "bytes"), *asked), ADMIN, 2, b"is not UTF-8"),
        ((str(tmp_path / "long"), *asked), ADMIN, 2, b"are longer than"),
        ((str(tmp_path / "deep"), *asked), ADMIN, 2, b"brackets are open at one place"),
        ((str(tmp_path / "none"), *asked), ADMIN, 125, b"No such file"),
        ((str(tmp_path / "empty"), *asked), ADMIN, 2, b"is empty: if there are to be no policies in it, write"),
        ((str(tmp_path / "bad"), *asked), USER, 125, b"you have no right to explain with policies to try: admin"),
        (("--nosuch", *asked), USER, 2, b"there is no option --nosuch"),
        (("--as", "nobody", *asked), ADMIN, 125, b"'nobody' names no user"),
        (("--as", "nobody", *asked), USER, 125, b"you have no right to explain decisions about other users: admin"),
        (("--as", OTHER, *asked), USER, 125, b"you have no right to explain decisions about other users: admin"),
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
