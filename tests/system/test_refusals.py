"""What somebody who may not do something reads: what it takes, and what to do next."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import run_workerctl
from tests.daemon import USER, Daemon, running_daemon

VIEWER, GUEST, ADMIN, STRANGER = "viewer", "guest", "ada", "stranger"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a viewer and somebody else."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "state" / "policies").mkdir(parents=True)
    (folder / "state" / "policies" / "own.cedar").write_text(
        '@id("kept")\nforbid (principal, action == Action::"remove", resource is Job);\n'
        f'@id("nothing")\nforbid (principal, action, resource) when {{ principal.name == "{STRANGER}" }};\n'
    )
    with running_daemon(folder / "state", "--roles.viewer", VIEWER, "--roles.admin", ADMIN) as daemon:
        daemon.pki.issue_client(STRANGER)
        for user in (VIEWER, GUEST, ADMIN):
            daemon.pki.issue_client(user)
            assert daemon.workerctl("whoami", user=user).returncode == 0
        yield daemon


@pytest.fixture(scope="module")
def job(daemon: Daemon) -> str:
    """A job of the user's, shared for being asked about."""
    job_id = daemon.workerctl("spawn", "--", "true").stdout.decode().strip()
    assert daemon.workerctl("share", job_id, "--with", GUEST, "--allow", "status").returncode == 0
    return job_id


def told(daemon: Daemon, *arguments: str, user: str = USER) -> tuple[int, str]:
    """Run a command that fails, and give its exit code and its one line."""
    result = daemon.workerctl(*arguments, user=user)
    assert result.stdout == b"" and result.stderr.count(b"\n") == 1, result
    return result.returncode, result.stderr.decode()


@pytest.mark.parametrize("user", [VIEWER, GUEST])
def test_who_may_see_a_job_is_told_whose_it_is_and_how_to_get_the_right(daemon: Daemon, job: str, user: str) -> None:
    code, line = told(daemon, "stop", job, user=user)
    assert code == 125
    assert line.endswith(
        f"you have no right to stop: the job is {USER}'s, who can do it, or let you with `workerctl share`\n"
    )
    assert daemon.workerctl("share", job, "--with", user, "--allow", "status,stop").returncode == 0
    assert daemon.workerctl("stop", job, user=user).returncode == 0
    assert daemon.workerctl("share", job, "--with", user, "--allow", "status").returncode == 0


@pytest.mark.parametrize("user", [VIEWER, GUEST])
def test_who_may_see_a_job_is_not_sent_to_ask_for_a_share_that_gives_nothing(
    daemon: Daemon, job: str, user: str
) -> None:
    assert daemon.workerctl("share", job, "--with", user, "--allow", "status,show-envs,share").returncode == 0
    for arguments, right in ((("status", job, "--show-envs"), "show-envs"), (("share", job), "share")):
        _, line = told(daemon, *arguments, user=user)
        what = "who can do it, and cannot give you this right by sharing the job"
        assert line.endswith(f"you have no right to {right}: the job is {USER}'s, {what}\n")
    _, line = told(daemon, "remove", job, user=user)  # which nobody can, and nobody can give
    assert line.endswith("`workerctl whoami` shows yours, and whoever runs the daemon gives rights\n")


def test_who_acts_for_an_owner_is_told_how_to_find_out_what_denies_it(daemon: Daemon, job: str) -> None:
    as_admin = ("--certificate", ADMIN)
    _, line = told(daemon, *as_admin, "status", job, "--show-envs")
    command = f"workerctl policy test --action show-envs --job {job}"
    assert f"`{command}` tells which policy denies it" in line
    found = daemon.workerctl(*as_admin, *command.split()[1:])
    assert found.returncode == 1 and b"decided by: default.cedar:envs-are-the-owners\n" in found.stdout


def test_an_owner_whom_a_policy_keeps_from_something_can_find_out_which(daemon: Daemon, job: str) -> None:
    code, line = told(daemon, "remove", job)
    command = f"workerctl policy test --action remove --job {job}"
    assert code == 125 and f"`{command}` tells which policy denies it" in line
    found = daemon.workerctl(*command.split()[1:])
    assert found.returncode == 1 and b"decided by: own.cedar:kept\n" in found.stdout


def test_who_may_not_see_a_job_is_told_that_there_is_none_and_how_to_find_others(daemon: Daemon) -> None:
    job_id = daemon.workerctl("spawn", "--", "true").stdout.decode().strip()
    code, line = told(daemon, "status", job_id, user=GUEST)
    assert code == 123
    assert (
        f"there is no job {job_id} that you may see: `workerctl list --all-owners` shows all that you may see" in line
    )


def test_who_was_just_reading_a_job_is_told_that_they_may_see_it_no_more(daemon: Daemon) -> None:
    spawned = daemon.workerctl("spawn", "--", "sh", "-c", "echo ready; exec sleep 1000")
    job_id = spawned.stdout.decode().strip()
    assert daemon.workerctl("share", job_id, "--with", GUEST, "--allow", "status,stream-log").returncode == 0
    command = daemon.command("stream-log", "--past-events", job_id, user=GUEST)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"ready\n"
        assert daemon.workerctl("share", job_id, "--with", GUEST, "--revoke").returncode == 0
        out, err = follower.communicate(timeout=30)
    assert (follower.returncode, out) == (123, b"")
    assert b"you may not see the job any more: its owner took that back" in err
    assert f"the daemon says: there is no job {job_id} that you may see".encode() in err


def test_who_may_not_start_jobs_is_told_where_rights_are_shown(daemon: Daemon) -> None:
    code, line = told(daemon, "spawn", "--", "true", user=VIEWER)
    assert code == 125 and "you have no right to spawn: `workerctl whoami` shows yours, and whoever runs" in line
    assert b"spawn" not in daemon.workerctl("whoami", user=VIEWER).stdout


def test_who_may_not_even_ask_for_their_rights_is_not_sent_to_do_so(daemon: Daemon) -> None:
    for command in ("whoami", "list"):
        code, line = told(daemon, command, user=STRANGER)
        assert code == 125 and line.endswith(f"no right to {command}: whoever runs the daemon gives rights\n")


def test_who_has_a_right_on_their_own_jobs_alone_is_told_so(daemon: Daemon) -> None:
    assert b"explain" in daemon.workerctl("whoami", user=GUEST).stdout
    code, line = told(daemon, "policy", "test", "--action", "stop", user=GUEST)
    assert code == 125
    assert (
        "you have no right to explain where no job is named: you have it on jobs of yours, and whoever runs the daemon"
        " can give you more\n" in line
    )


@pytest.mark.parametrize("other", [USER, "nobody-who-was-here"])
def test_who_may_not_act_for_another_is_told_how_to_call_for_themselves(daemon: Daemon, other: str) -> None:
    code, line = told(daemon, "--certificate", GUEST, "whoami", user=other)
    assert code == 125
    assert (
        f"you have no right to impersonate {other}: leave --username out to call for yourself, or present a"
        " certificate of theirs\n" in line
    )


def test_an_account_that_is_not_given_is_told_with_what_to_leave_out(daemon: Daemon) -> None:
    code, line = told(daemon, "spawn", "--run-as", "another", "--", "true")
    assert code == 125 and "you have no right to run-as another: leave --run-as out, or have whoever runs" in line


def test_a_narrowed_certificate_says_what_it_is_good_for(daemon: Daemon, job: str, tmp_path: Path) -> None:
    narrowed = str(tmp_path / "narrowed")
    issued = daemon.workerctl("credential", "issue", "--allow", "status,stream-log", "--out", narrowed)
    assert issued.returncode == 0, issued.stderr
    for arguments, right in ((("whoami",), "whoami"), (("stop", job), "stop")):
        result = run_workerctl("--endpoint", daemon.endpoint, "--username", USER, "--pki-dir", narrowed, *arguments)
        advice = "your certificate is good for status, stream-log only: present your full one"
        assert (result.returncode, result.stdout) == (125, b"")
        assert f"you have no right to {right}: {advice}\n" in result.stderr.decode()
