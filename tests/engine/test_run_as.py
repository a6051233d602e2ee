"""Jobs of other system accounts: what they are and may, what becomes of them, and why one could not be run."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import end_jobs
from tests.engine.logs import ME, Log, read_log, run, wait_for_output
from workerd.engine import account
from workerd.engine.account import find_account, own_account
from workerd.engine.engine import Engine
from workerd.engine.errors import (
    AccountUnusable,
    InvalidArgument,
    ProgramNotExecutable,
    ProgramNotFound,
    WorkingDirectoryUnusable,
)
from workerd.engine.folder import JobFolder
from workerd.engine.job import Exited, Stopped
from workerd.engine.request import SpawnRequest
from workerd.engine.tree import parent_of

NOBODY = "nobody"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take on another account")
with_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv(1)")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every account reaches, unlike those that pytest makes."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
async def engine(open_directory: Path) -> AsyncIterator[Engine]:
    """An engine whose state directory nothing but its own permissions hides."""
    async with Engine(open_directory / "state") as engine:
        yield engine
    end_jobs(open_directory / "state")


def wish(script: str, **fields: Any) -> SpawnRequest:
    """A request for a job of nobody's."""
    fields = {"run_as": NOBODY, "working_directory": "/", **fields}
    return SpawnRequest(owner=ME, program="/bin/sh", args=("-c", script), **fields)


def status_lines(log: Log) -> dict[str, str]:
    """Read the lines of a /proc/PID/status."""
    return dict(line.split(":\t", 1) for line in log.stdout.decode().splitlines() if ":\t" in line)


def has_process(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@as_root
async def test_the_program_is_the_accounts_with_its_groups_and_nothing_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = pwd.getpwnam(NOBODY)
    monkeypatch.setattr(os, "getgrouplist", lambda *_: [entry.pw_gid, 54321, 54320])
    line = status_lines(await run(engine, wish("cat /proc/$$/status")))
    assert line["Uid"].split() == [str(entry.pw_uid)] * 4  # real, effective, saved, of the file system: no way back
    assert line["Gid"].split() == [str(entry.pw_gid)] * 4
    assert set(line["Groups"].split()) == {str(entry.pw_gid), "54320", "54321"}
    assert [int(line[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]
    assert line["NoNewPrivs"] == "1"


@as_root
async def test_a_job_without_an_account_runs_as_the_daemon_does(engine: Engine) -> None:
    line = status_lines(await run(engine, wish("cat /proc/$$/status", run_as="")))
    assert line["Uid"].split() == ["0"] * 4
    assert line["NoNewPrivs"] == "0"


async def test_an_account_that_is_the_daemons_own_is_nothing_to_become(engine: Engine) -> None:
    name = own_account().name
    job_id = await engine.spawn(wish("true", run_as=name))
    assert engine.status(job_id).spec.account is None
    assert engine.status(job_id).spec.run_as == ""


@as_root
async def test_the_program_finds_the_accounts_own_surroundings(engine: Engine) -> None:
    homes = (entry for entry in pwd.getpwall() if entry.pw_uid and Path(entry.pw_dir).is_dir())
    entry = next(entry for entry in homes if Path(entry.pw_dir).stat().st_mode & 0o005 == 0o005)
    job_id = await engine.spawn(wish("env; pwd", run_as=entry.pw_name, working_directory=""))
    lines = (await read_log(engine, job_id)).stdout.decode().splitlines()
    assert lines[-1] == engine.status(job_id).spec.working_directory == entry.pw_dir
    assert {f"HOME={entry.pw_dir}", f"USER={entry.pw_name}", f"LOGNAME={entry.pw_name}"} < set(lines)
    assert {f"SHELL={entry.pw_shell}", "PATH=/usr/local/bin:/usr/bin:/bin"} < set(lines)
    assert engine.status(job_id).spec.run_as == entry.pw_name


@as_root
async def test_output_is_captured_also_of_streams_that_are_opened_again(engine: Engine) -> None:
    log = await run(engine, wish("echo one; echo two > /dev/stdout; echo three >&2; echo four > /dev/stderr"))
    assert (log.stdout, log.stderr) == (b"one\ntwo\n", b"three\nfour\n")


@as_root
async def test_a_program_with_the_set_user_id_bit_gains_nothing(engine: Engine, open_directory: Path) -> None:
    tool = open_directory / "id"
    shutil.copy(shutil.which("id") or "", tool)
    tool.chmod(0o4755)
    assert (await run(engine, wish(f"{tool} -u"))).stdout.decode().strip() == str(pwd.getpwnam(NOBODY).pw_uid)


@as_root
async def test_the_state_directory_is_closed_to_jobs_of_other_accounts(engine: Engine, open_directory: Path) -> None:
    state = open_directory / "state"
    mine = await engine.spawn(wish("echo mine", run_as="", envs={"SECRET": "x"}))
    await read_log(engine, mine)
    state.chmod(0o755)  # as one that an administrator made
    names = ("journal", "spec", "output", "index", "control")
    reads = "; ".join(f"cat {state}/jobs/{mine}/{name}" for name in names)
    own = f"cat {state}/jobs/$WORKERD_JOB_ID/journal; cat {state}/spool; ls {state}/jobs"
    above = "cat /proc/$PPID/environ; ls /proc/$PPID/fd"
    readable = f"find {state} ! -type d -readable"  # an empty file, too: it could be locked
    log = await run(engine, wish(f"{reads}; {own}; {above}; {readable}; echo done"))
    assert log.stdout == b"done\n"


@as_root
async def test_the_working_directory_is_entered_with_the_accounts_rights(engine: Engine, open_directory: Path) -> None:
    private = open_directory / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(WorkingDirectoryUnusable, match=f"Permission denied .as {NOBODY}."):
        await engine.spawn(wish("true", working_directory=str(private)))
    os.chown(private, pwd.getpwnam(NOBODY).pw_uid, -1)
    assert (await run(engine, wish("pwd", working_directory=str(private)))).stdout.decode().strip() == str(private)


@as_root
async def test_the_program_is_looked_up_with_the_accounts_rights(engine: Engine, open_directory: Path) -> None:
    """The daemon would find the first; what lies where the account may not look is neither run nor told of."""
    private, public = open_directory / "private", open_directory / "public"
    for directory, mode in ((private, 0o700), (public, 0o755)):
        directory.mkdir(mode=mode)
        (directory / "tool").write_text(f"#!/bin/sh\necho {directory.name}\n")
        (directory / "tool").chmod(0o755)
    envs = {"PATH": f"{private}:{public}"}
    tool = SpawnRequest(owner=ME, program="tool", envs=envs, run_as=NOBODY, working_directory="/")
    assert (await run(engine, tool)).stdout == b"public\n"
    for name in ("tool", "no-tool"):
        with pytest.raises(ProgramNotExecutable, match="Permission denied"):
            await engine.spawn(SpawnRequest(owner=ME, program=str(private / name), run_as=NOBODY))
    with pytest.raises(ProgramNotFound):
        await engine.spawn(SpawnRequest(owner=ME, program=str(public / "no-tool"), run_as=NOBODY))
    (public / "tool").chmod(0o700)
    with pytest.raises(ProgramNotExecutable, match="chmod"):
        await engine.spawn(SpawnRequest(owner=ME, program=str(public / "tool"), run_as=NOBODY))


@as_root
async def test_the_program_dies_with_its_supervisor(open_directory: Path) -> None:
    """By the kernel alone: there is no keeper here that would end what is left."""
    state = open_directory / "state"
    async with Engine(state):
        pass
    try:
        async with Engine(state, keeps=False) as engine:
            job_id = await engine.spawn(wish("echo ready; exec sleep 1000"))
            await wait_for_output(engine, job_id, b"ready")
            pid = engine.status(job_id).status.pid
            supervisor = parent_of(pid)
            assert supervisor
            handle = os.pidfd_open(pid)
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(handle, ended.set)
            os.kill(supervisor, signal.SIGKILL)
            try:
                async with asyncio.timeout(10):
                    await ended.wait()
            finally:
                asyncio.get_running_loop().remove_reader(handle)
                os.close(handle)
    finally:
        async with Engine(state) as engine:  # whose keeper ends the job, whatever became of it
            await read_log(engine, job_id)


@as_root
@pytest.mark.parametrize(("trap", "signal_"), [("exit 3", signal.SIGTERM), ("", signal.SIGKILL)])
async def test_a_job_is_stopped_as_a_whole(engine: Engine, trap: str, signal_: signal.Signals) -> None:
    script = f"trap '{trap}' TERM; (trap '' TERM; exec sleep 1000) & echo $!; while :; do sleep 0.05; done"
    job_id = await engine.spawn(wish(script))
    below = int((await wait_for_output(engine, job_id, b"\n")).split()[0])
    await engine.stop(job_id, ME, 0.5)
    end = (await read_log(engine, job_id)).end
    assert end is not None
    assert isinstance(end.cause, Stopped)
    assert end.cause.signal == signal_ or trap  # what is below gets SIGKILL in any case
    assert not has_process(below)


@as_root
async def test_the_job_is_in_its_cgroup_before_it_is_another_accounts(engine: Engine, open_directory: Path) -> None:
    job_id = await engine.spawn(wish("cat /proc/self/cgroup"))
    log = await read_log(engine, job_id)
    supervisor = JobFolder(open_directory / "state" / "jobs" / job_id).read().supervisor
    assert supervisor is not None
    assert not supervisor.cgroup or Path(supervisor.cgroup).name in log.stdout.decode()


@as_root
async def test_a_key_finds_the_job_of_another_account_again(engine: Engine) -> None:
    ids = {await engine.spawn(wish("true", request_key="k")) for _ in range(2)}
    ids.update(await asyncio.gather(*(engine.spawn(wish("true", request_key="k")) for _ in range(5))))
    assert len(ids) == 1


async def test_an_account_that_there_is_not_is_told_and_nothing_is_left(engine: Engine, open_directory: Path) -> None:
    with pytest.raises(AccountUnusable, match=r"^cannot run as no-such-account: .*getent passwd"):
        await engine.spawn(wish("true", run_as="no-such-account"))
    assert list((open_directory / "state" / "jobs").iterdir()) == []
    for impossible in ("a\0b", "x" * 300):
        with pytest.raises(InvalidArgument, match="run_as"):
            await engine.spawn(wish("true", run_as=impossible))


async def test_a_key_finds_its_job_though_the_account_is_gone(engine: Engine) -> None:
    job_id = await engine.spawn(wish("true", run_as="", request_key="k"))
    assert await engine.spawn(wish("true", run_as="no-such-account", request_key="k")) == job_id


def test_an_account_is_taken_by_its_first_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a policy about the account could be evaded under another name."""
    root = pwd.getpwuid(0)
    second = pwd.struct_passwd(("toor", *root[1:]))
    monkeypatch.setattr(pwd, "getpwnam", {"root": root, "toor": second}.__getitem__)
    with pytest.raises(AccountUnusable, match="cannot run as toor: it is the account root on the daemon's machine"):
        find_account("toor")


def test_a_daemon_that_is_not_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.getpwnam(NOBODY)
    monkeypatch.setattr(os, "geteuid", lambda: entry.pw_uid)
    monkeypatch.setattr(account, "own_account", own_account.__wrapped__)  # what other tests looked up is remembered
    assert find_account(NOBODY) is None
    with pytest.raises(AccountUnusable, match=f"runs as {NOBODY}, and only root may"):
        find_account("root")


SPAWN = """
import asyncio, sys, tempfile
from pathlib import Path
from tests.engine.logs import run
from tests.engine.test_run_as import wish
from workerd.engine.engine import Engine

async def main():
    with tempfile.TemporaryDirectory() as directory:
        async with Engine(Path(directory)) as engine:
            try:
                print((await run(engine, wish("cat /proc/self/status"))).stdout.decode())
            except Exception as error:
                print(type(error).__name__, error)

asyncio.run(main())
"""


@as_root
@with_setpriv
@pytest.mark.parametrize("missing", ["setuid", "setgid"])
def test_a_root_that_may_not_change_to_the_account_runs_nothing(missing: str) -> None:
    """As in some containers (capabilities(7))."""
    said = engine_under("--bounding-set", f"-{missing}", "--inh-caps", f"-{missing}")
    assert said.startswith(f"AccountUnusable cannot run as {NOBODY}: the kernel does not let the daemon"), said


@as_root
@with_setpriv
def test_no_capability_is_left_whatever_the_daemon_was_started_with() -> None:
    """With this bit the kernel takes no capability away when the user changes (capabilities(7))."""
    said = engine_under("--securebits", "+no_setuid_fixup", "--inh-caps", "+chown", "--ambient-caps", "+chown")
    lines = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    assert lines["Uid"].split() == [str(pwd.getpwnam(NOBODY).pw_uid)] * 4
    assert [int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]


def engine_under(*options: str) -> str:
    """Run one job of nobody's in an engine that was started by setpriv(1); return what it printed, or the error."""
    command = ["setpriv", *options, "--", sys.executable, "-c", SPAWN]
    result = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=Path(__file__).parents[2])
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


async def test_a_daemon_of_a_job_that_it_did_not_start_tells_its_account(open_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may take on another account")
    async with Engine(open_directory / "state") as engine:
        job_id = await engine.spawn(wish("exit 4"))
    async with Engine(open_directory / "state") as engine:
        end = (await read_log(engine, job_id)).end
        account = engine.status(job_id).spec.account
    assert end is not None
    assert end.cause == Exited(4)
    assert account is not None
    assert (account.name, account.uid) == (NOBODY, pwd.getpwnam(NOBODY).pw_uid)


@as_root
async def test_nobody_else_can_hold_up_the_next_daemon(open_directory: Path) -> None:
    """Of a state directory that others may enter, as service managers make them, and an older workerd's files."""
    state = open_directory / "state"
    state.mkdir(mode=0o755)
    (state / "catalog.lock").touch(mode=0o644)
    async with Engine(state):
        hold = f"flock --nonblock {state}/catalog.lock true"
        held = subprocess.run(["sh", "-c", hold], user=NOBODY, capture_output=True, timeout=10, check=False)
    assert held.returncode != 0 and b"Permission denied" in held.stderr
