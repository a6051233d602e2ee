"""Narrowed credentials, with the programs as users have them: made, used, chained, revoked and expired."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorReason, JobState, SpawnRequest

from pki.files import key_path, load_certificate
from pki.inventory import describe_now
from pki.store import PkiFolder
from tests.commands import run_workerctl
from tests.daemon import USER, Daemon, end_jobs
from tests.narrowing import narrow
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerctl.events import Output

SOON_SECONDS = 10
FOREVER = SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"])


def issue(daemon: Daemon, out: Path, allow: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return daemon.workerctl("credential", "issue", "--allow", allow, "--out", str(out), *options)


def guest(daemon: Daemon, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run workerctl with the certificate of a folder."""
    options = ("--endpoint", daemon.endpoint, "--username", USER, "--pki-dir", str(folder))
    return run_workerctl(*options, *arguments)


def test_what_is_printed_is_what_to_type_next(any_daemon: Daemon, tmp_path: Path) -> None:
    out = tmp_path / "for the watcher"
    result = issue(any_daemon, out, "stream-log,status")
    assert (result.returncode, result.stderr) == (0, b"")
    lines = dict(re.findall(r"^([\w ]+): +(.*)$", result.stdout.decode(), re.MULTILINE))
    assert (lines["file"], lines["rights"]) == (str(out / "clients" / f"{USER}.crt"), "status, stream-log")
    program, *words = shlex.split(lines["use it by"])
    assert (program, words.pop()) == ("workerctl", "COMMAND")
    job_id = any_daemon.workerctl("spawn", "--", "true").stdout.decode().strip()
    result = run_workerctl(*words, "status", job_id)
    assert result.returncode == 0 and job_id.encode() in result.stdout


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_folder_has_what_it_takes_and_its_key_is_for_its_owner_alone(
    shared_daemon: Daemon, tmp_path: Path, kind: str
) -> None:
    before = os.umask(0)
    try:
        result = issue(shared_daemon, tmp_path / "out", "whoami", "--key-type", kind, "--output", "json")
    finally:
        os.umask(before)
    said = json.loads(result.stdout)
    folder = PkiFolder(tmp_path / "out")
    certificate = folder.client_certificate(USER)
    described = describe_now(load_certificate(certificate))
    assert (said["file"], said["rights"], said["serial"]) == (str(certificate), ["whoami"], described.serial)
    assert said["expires_at"] == described.not_after.isoformat()
    assert said["usage"][-2:] == ["--pki-dir", str(folder.path)]
    modes = {str(path.relative_to(folder.path)): stat.S_IMODE(path.stat().st_mode) for path in folder.path.rglob("*")}
    assert modes == {
        "clients": 0o700,
        f"clients/{USER}.crt": 0o644,
        f"clients/{USER}.key": 0o600,
        "server-ca.crt": 0o644,
    }
    assert (b"BEGIN PRIVATE KEY" in key_path(certificate).read_bytes()) and guest(
        shared_daemon, folder.path, "whoami"
    ).returncode == 0


def test_narrowed_user_is_told_what_is_not_permitted_and_not_warned_of_the_expiry(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    issue(shared_daemon, tmp_path / "out", "whoami,status", "--ttl", "1h")
    result = guest(shared_daemon, tmp_path / "out", "whoami")
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"/only/status.whoami\n" in result.stdout and b": status, whoami\n" in result.stdout
    for command in (("list",), ("run", "--", "true"), ("spawn", "--", "true")):
        result = guest(shared_daemon, tmp_path / "out", *command)
        assert (result.returncode, result.stdout) == (125, b"")
        assert b"you have no right to" in result.stderr
    assert "a user's certificate is about to expire" not in shared_daemon.errors()


@pytest.mark.parametrize(("ttl", "is_told"), [("400d", True), ("15m", False)])
def test_one_that_ends_sooner_than_it_was_asked_to_is_told(
    shared_daemon: Daemon, tmp_path: Path, ttl: str, is_told: bool
) -> None:
    result = issue(shared_daemon, tmp_path / "out", "whoami", "--ttl", ttl)
    assert result.returncode == 0, result.stderr
    told = f"it ends with your own certificate, sooner than --ttl {ttl} says\n".encode()
    assert result.stderr == (b"workerctl: " + told if is_told else b"")


def test_nothing_is_asked_for_or_changed_where_something_is_already(shared_daemon: Daemon, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert issue(shared_daemon, out, "whoami").returncode == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = issue(shared_daemon, out, "whoami")
    assert (
        result.returncode == 125
        and b"is not overwritten: choose another folder, or have it replaced with --replace" in result.stderr
    )
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = PkiFolder(tmp_path / "other")
    other.initialize()
    result = issue(shared_daemon, other.path, "whoami")
    assert result.returncode == 125 and b"server-ca.crt exists already" in result.stderr
    assert other.users() == []


def test_one_that_is_there_is_replaced_where_that_is_wanted_and_kept_aside(
    shared_daemon: Daemon, tmp_path: Path
) -> None:
    folder = PkiFolder(tmp_path / "out")
    for _ in range(2):
        assert issue(shared_daemon, folder.path, "whoami", "--replace").returncode == 0
    first, second = folder.certificates()[::-1][:2]
    assert second == folder.client_certificate(USER) and first.parent.name == "replaced"
    before, after = (describe_now(load_certificate(path)) for path in (first, second))
    assert before.serial != after.serial and before.rights == after.rights == ("whoami",)
    assert stat.S_IMODE(key_path(first).stat().st_mode) == stat.S_IMODE(key_path(second).stat().st_mode) == 0o600
    assert guest(shared_daemon, folder.path, "whoami").returncode == 0


@pytest.mark.parametrize("options", [(), ("--replace",)], ids=["", "--replace"])
def test_a_full_certificate_never_gives_way_to_one_that_can_do_less(daemon: Daemon, options: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in daemon.pki.path.rglob("*") if path.is_file()}
    result = issue(daemon, daemon.pki.path, "whoami", *options)
    assert (result.returncode, result.stdout) == (125, b"")
    assert b"is not overwritten: it is a full one; choose another folder for one that can do less\n" in result.stderr
    assert before == {path: path.read_bytes() for path in daemon.pki.path.rglob("*") if path.is_file()}


def test_who_may_list_but_not_see_jobs_is_told(shared_daemon: Daemon, tmp_path: Path) -> None:
    result = issue(shared_daemon, tmp_path / "out", "list")
    assert result.returncode == 0 and b"it lists nothing" in result.stderr
    assert issue(shared_daemon, tmp_path / "both", "list,status").stderr == b""


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--allow", ",", "--out", "x"), b"--allow names no right"),
        (("--allow", "fly", "--out", "x"), b"names 'fly', but there are only"),
        (("--allow", "status", "--out", ""), b"--out names no folder"),
        (("--allow", "status", "--out", "x", "--ttl", "15"), b"is no length of time"),
    ],
)
def test_what_cannot_be_is_a_mistake_of_the_command_line(
    shared_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], problem: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    command = shared_daemon.command("credential", "issue", *options)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert result.returncode == 2, result.stderr
    assert problem in result.stderr and b"Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_own_daemon_issues_too_and_is_started_for_it(tmp_path: Path) -> None:
    state = tmp_path / ".local" / "state" / "workerd"
    passed_on = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = [sys.executable, "-m", "workerctl", "credential", "issue", "--allow", "whoami", "--output", "json"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        env={"HOME": str(tmp_path), **passed_on},
        capture_output=True,
        timeout=60,
        check=False,
    )
    try:
        assert (result.returncode, result.stderr) == (0, b"")
        usage = [sys.executable, "-m", *json.loads(result.stdout)["usage"], "whoami"]
        assert subprocess.run(usage, capture_output=True, timeout=60, check=False).returncode == 0
    finally:
        os.kill(int((state / "lock").read_text()), 15)
        end_jobs(state)


async def follow(client: Client, job_id: str, said: list[bytes], when_ready: Callable[[], object] = int) -> None:
    """Follow a job for as long as its log goes on, and do something when it is ready."""
    async with asyncio.timeout(SOON_SECONDS), contextlib.aclosing(client.stream_log(job_id)) as events:
        async for event in events:
            if isinstance(event, Output):
                said.append(event.data)
                if event.data == b"ready\n":
                    when_ready()


async def call_until_refused(client: Client) -> None:
    async with asyncio.timeout(SOON_SECONDS):
        while True:
            await client.whoami()
            await asyncio.sleep(0.05)


def serial(folder: PkiFolder) -> str:
    return describe_now(load_certificate(folder.client_certificate(USER))).serial


@pytest.mark.parametrize("generation", ["parent", "grandparent"])
async def test_revoking_a_certificate_ends_the_streams_of_all_that_descend_from_it(
    any_daemon: Daemon, tmp_path: Path, generation: str
) -> None:
    async with any_daemon.client() as client:
        job_id = await client.spawn(FOREVER)
        child = await narrow(client, any_daemon, tmp_path / "child", ["stream-log", "issue-credential"])
    async with Client(child) as client:
        grandchild = await narrow(client, any_daemon, tmp_path / "grandchild", ["stream-log"])
    revoked = PkiFolder(tmp_path / "child") if generation == "parent" else any_daemon.pki
    said: list[bytes] = []
    async with Client(grandchild) as client:
        begun = time.monotonic()
        with pytest.raises(CallFailed) as raised:
            await follow(client, job_id, said, lambda: any_daemon.pki.revoke(serial(revoked)))
        assert time.monotonic() - begun < 3
        assert (raised.value.status, raised.value.reason) == (Status.UNAUTHENTICATED, ErrorReason.CERTIFICATE_REVOKED)
        assert said == [b"ready\n"]
        with pytest.raises(CallFailed, match="was revoked"):
            await client.status(job_id)


async def test_revoking_a_descendant_leaves_those_above_alone(daemon: Daemon, tmp_path: Path) -> None:
    async with daemon.client() as client:
        child = await narrow(client, daemon, tmp_path / "child", ["whoami"])
        async with Client(child) as below:
            await below.whoami()
            daemon.pki.revoke(serial(PkiFolder(tmp_path / "child")))
            with pytest.raises(CallFailed, match="was revoked"):
                await call_until_refused(below)
        await client.whoami()


async def test_stream_ends_when_a_narrowed_certificate_expires_and_the_job_runs_on(
    any_daemon: Daemon, tmp_path: Path
) -> None:
    said: list[bytes] = []
    async with any_daemon.client() as client:
        job_id = await client.spawn(FOREVER)
        begun = time.monotonic()
        short = await narrow(client, any_daemon, tmp_path, ["stream-log"], timedelta(seconds=4))
        async with Client(short) as narrowed:
            with pytest.raises(CallFailed) as raised:
                await follow(narrowed, job_id, said)
        assert (raised.value.reason, said) == (ErrorReason.CERTIFICATE_EXPIRED, [b"ready\n"])
        assert 2 < time.monotonic() - begun < 6
        assert (await client.status(job_id)).state is JobState.RUNNING
    result = guest(any_daemon, tmp_path, "stream-log", job_id)
    assert result.returncode == 125 and b"issued anew with `workerctl credential issue`" in result.stderr
