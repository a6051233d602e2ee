"""Policies and roles as an operator sets them, against whole daemons."""

import re
import uuid
from pathlib import Path

import pytest

from tests.daemon import USER, Daemon, running_daemon
from tests.matrix.callers import install_example
from tests.system.test_reload import wait_told

DOCUMENTED = Path(__file__).parents[2] / "docs" / "workerd.md"
BAD = 'permit (principal, action == Action::"fly", resource);'
OTHER = "other"


def documented_policies() -> dict[str, str]:
    """The files that the page on the daemon has as examples, by their names."""
    section = DOCUMENTED.read_text().partition("\n### Policies\n")[2].partition("\n### ")[0]
    files = dict(re.findall(r"`([\w-]+\.cedar)`:\n\n```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))
    assert files
    return files


def verdict(daemon: Daemon, *arguments: str, user: str = USER) -> tuple[bool, str]:
    """Ask whether something would be permitted, and by which policies."""
    result = daemon.workerctl("policy", "test", *arguments, user=user)
    assert result.returncode in (0, 1) and result.stderr == b"", result.stderr
    decided = result.stdout.decode().splitlines()[2].removeprefix("decided by: ")
    assert result.stdout.startswith(b"permitted: " if result.returncode == 0 else b"denied: ")
    return result.returncode == 0, decided


def put(file: Path, text: str) -> None:
    """Put a file in its place as a whole."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def see(daemon: Daemon, *users: str) -> None:
    """Make users, and let the daemon see them."""
    for user in users:
        daemon.pki.issue_client(user)
        assert daemon.workerctl("whoami", user=user).returncode == 0


def test_the_pages_example_permits_what_it_says_and_no_more(tmp_path: Path) -> None:
    policies = tmp_path / "state" / "policies"
    policies.mkdir(parents=True)
    for name, text in documented_policies().items():
        (policies / name).write_text(text)
    roles = ("--roles.admin", USER, "--roles.operator", "olga", "--roles.guest", "greta")
    with running_daemon(tmp_path / "state", *roles) as daemon:
        see(daemon, "olga", "greta", OTHER)
        job_id = daemon.workerctl("spawn", "--", "true", user=OTHER).stdout.decode().strip()
        assert (
            daemon.workerctl("share", job_id, "--with", "greta", "--allow", "status,stop", user=OTHER).returncode == 0
        )
        of_job = ("--job", job_id)
        assert verdict(daemon, "--as", "olga", "--action", "stop", *of_job) == (True, "site.cedar:operators-stop")
        assert verdict(daemon, "--as", "olga", "--action", "status", *of_job) == (True, "site.cedar:operators-stop")
        assert not verdict(daemon, "--as", "olga", "--action", "remove", *of_job)[0]
        assert verdict(daemon, "--as", "greta", "--action", "spawn") == (False, "site.cedar:guests-start-nothing")
        assert verdict(daemon, "--as", "greta", "--action", "stop", *of_job)[0]
        assert verdict(daemon, "--as", OTHER, "--action", "spawn")[0]
        assert daemon.workerctl("stop", job_id, user="olga").returncode == 0
        assert daemon.workerctl("remove", job_id, user="olga").returncode == 125
        assert daemon.workerctl("spawn", "--", "true", user="greta").returncode == 125


def test_policies_are_taken_up_while_the_daemon_runs_and_bad_ones_are_not(any_daemon: Daemon) -> None:
    folder = any_daemon.state / "policies"
    folder.mkdir()
    file = folder / "own.cedar"
    put(file, 'forbid (principal, action == Action::"spawn", resource);')
    wait_told(any_daemon, "policies were changed and are in force from now on")
    assert b"no right to spawn" in any_daemon.workerctl("spawn", "--", "true").stderr
    put(file, BAD)
    wait_told(any_daemon, "policies were changed and cannot be used")
    assert b"no right to spawn" in any_daemon.workerctl("spawn", "--", "true").stderr
    file.unlink()
    wait_told(any_daemon, "policies were changed and are in force from now on", 2)
    assert any_daemon.workerctl("spawn", "--", "true").returncode == 0


def test_a_file_of_the_same_name_takes_the_place_of_the_default_policies(daemon: Daemon) -> None:
    (daemon.state / "policies").mkdir()
    put(
        daemon.state / "policies" / "default.cedar",
        'permit (principal, action == Action::"whoami", resource is Daemon);',
    )
    wait_told(daemon, "policies were changed and are in force from now on")
    assert b"rights, on your own jobs where they concern one: whoami\n" in daemon.workerctl("whoami").stdout
    assert daemon.workerctl("list").returncode == 125


@pytest.mark.parametrize(
    ("text", "problem", "options"),
    [
        (BAD, "fly", ()),
        (BAD, "fly", ("--processes", "2")),
        ("permit (", "unexpected end", ()),
        ("\udcff", "it cannot be read", ()),
    ],
    ids=["a right that there is not", "the same for several processes", "not Cedar", "not UTF-8"],
)
def test_a_daemon_does_not_start_with_policies_that_cannot_be_used(
    tmp_path: Path, text: str, problem: str, options: tuple[str, ...]
) -> None:
    daemon = Daemon(tmp_path / "state", options)
    (tmp_path / "state" / "policies").mkdir()
    (tmp_path / "state" / "policies" / "own.cedar").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(AssertionError, match="ended with 1: "):
        daemon.start()
    *warnings, said = daemon.errors().splitlines()
    assert "own.cedar cannot be used: " in said and problem in said
    assert all("[warning" in line for line in warnings)  # that it is root's, say


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_role_is_given_by_name_or_by_id(tmp_path: Path, by: str) -> None:
    user_id = str(uuid.uuid4())
    given = {"name": "vera", "id": user_id.upper()}[by]
    with running_daemon(tmp_path / "state", "--roles.viewer", given) as daemon:
        daemon.pki.issue_client("vera", user_id=user_id)
        daemon.pki.issue_client("vera2", user_id=user_id)
        shown = {user: daemon.workerctl("whoami", user=user).stdout.decode() for user in ("vera", "vera2")}
        assert "roles: viewer\n" in shown["vera"]
        assert ("roles: viewer\n" in shown["vera2"]) is (by == "id")


def test_a_plugins_right_is_denied_until_a_policy_permits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_example(tmp_path / "packages", monkeypatch)
    with running_daemon(tmp_path / "state", "--roles.viewer", OTHER, "--roles.admin", USER) as daemon:
        see(daemon, OTHER)
        job_id = daemon.workerctl("spawn", "--", "true").stdout.decode().strip()
        asked = ("--as", OTHER, "--action", "measure", "--job", job_id)
        assert verdict(daemon, *asked) == (False, "no policy, and what none permits is denied")
        file = tmp_path / "more.cedar"
        file.write_text('@id("weigh")\npermit (principal in Role::"viewer", action == Action::"measure", resource);')
        assert verdict(daemon, str(file), *asked) == (True, "more.cedar:weigh")
        assert verdict(daemon, *asked)[0] is False  # trying it has changed nothing
