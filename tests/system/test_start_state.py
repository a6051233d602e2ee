"""Whatever state the daemon is started in, it works, and its jobs start from the state that is documented."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAMS
from tests.daemon import USER, Daemon, running_daemon
from tests.signals import read_mask
from tests.system.test_exhaustion import daemon_of, idle_account
from tests.waiting import wait_until

INSPECT = (sys.executable, str(PROGRAMS / "inspect_process.py"))
ALL = [number.name for number in signal.Signals if number not in (signal.SIGKILL, signal.SIGSTOP)]


def has_capability(number: int) -> bool:
    """Return whether these tests have a capability (capabilities(7), linux/capability.h)."""
    effective = re.findall(r"^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(effective[0], 16) >> number & 1)


OWN_OOM_SCORE = int(Path("/proc/self/oom_score_adj").read_text())
MAY_LOWER_OOM_SCORE = has_capability(24)  # CAP_SYS_RESOURCE
KEY = "workerd-test"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take precedence over others")


def started(*options: str) -> tuple[str, ...]:
    """The prefix of a daemon that is started in an unusual state: see tests/programs/unusual.py."""
    return (sys.executable, str(PROGRAMS / "unusual.py"), *options, "--")


def inspect(daemon: Daemon) -> dict[str, Any]:
    """Run a job that tells in which state it was started."""
    result = daemon.workerctl("run", "--", *INSPECT)
    assert result.returncode == 0, result.stderr
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


def bounded(name: str, soft: int) -> tuple[int, int]:
    """The limits of a process whose soft limit is a number, as far as the hard limit of these tests allows."""
    _, hard = resource.getrlimit(getattr(resource, name))
    return soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    "options",
    [("--block", "SIGCHLD"), [each for name in ALL for each in ("--block", name)], ("--ignore", "SIGCHLD")],
    ids=["SIGCHLD blocked", "all blocked", "SIGCHLD ignored"],
)
def test_jobs_of_a_daemon_whose_starter_blocked_or_ignored_signals_end_and_so_does_the_daemon(
    tmp_path: Path, options: tuple[str, ...], processes: str
) -> None:
    with running_daemon(tmp_path / "state", "--processes", processes, prefix=started(*options)) as daemon:
        result = daemon.workerctl("run", "--", "sh", "-c", "grep -E '^Sig(Ign|Blk)' /proc/self/status; exit 3")
        assert result.returncode == 3, result.stderr
        assert {read_mask(line.split(b":")[1]) for line in result.stdout.splitlines()} == {0}
        assert daemon.workerctl("run", "--timeout-seconds", "0.2", "--", "sleep", "1000").returncode == 124
        assert daemon.stop() == 0


def test_a_daemon_that_ignores_sigterm_at_its_start_is_ended_by_it(tmp_path: Path) -> None:
    """As service managers and the documentation have it; what a terminal sends is another matter."""
    with running_daemon(tmp_path / "state", prefix=started("--ignore", "SIGTERM")) as daemon:
        assert daemon.stop() == 0


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_of_the_terminal_that_was_ignored_at_the_daemons_start_stays_ignored(
    tmp_path: Path, number: signal.Signals, processes: str
) -> None:
    prefix = started("--ignore", number.name)
    with running_daemon(tmp_path / "state", "--processes", processes, prefix=prefix) as daemon:
        ignored = Path(f"/proc/{daemon.pid}/status").read_text().partition("SigIgn:")[2].split()[0]
        assert int(ignored, 16) >> (number - 1) & 1
        os.kill(daemon.pid, number)
        assert daemon.workerctl("run", "--", "true").returncode == 0
        assert daemon.stop() == 0


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_job_starts_from_the_documented_state_whatever_the_daemons_is(tmp_path: Path, processes: str) -> None:
    nice = max(os.getpriority(os.PRIO_PROCESS, 0), 3)
    core, most_core = bounded("RLIMIT_CORE", 1000)
    limits = ("--limit", f"CORE={core}", "--limit", "NOFILE=512", "--limit", "STACK=1048576")
    prefix = started("--umask", "077", "--nice", str(nice), "--oom-score-adj", "300", *limits)
    with running_daemon(tmp_path / "state", "--processes", processes, prefix=prefix) as daemon:
        seen = inspect(daemon)
    assert seen["umask"] == "0022"
    assert (seen["nice"], seen["oom_score_adj"], seen["scheduler"]) == (nice, 300, os.SCHED_OTHER)
    found = {name: tuple(limit) for name, limit in seen["limits"].items()}
    assert found["RLIMIT_CORE"] == (0, most_core)
    assert found["RLIMIT_NOFILE"] == bounded("RLIMIT_NOFILE", 1024)
    assert found["RLIMIT_STACK"] == bounded("RLIMIT_STACK", 8 << 20)


@as_root
def test_a_job_has_no_precedence_that_the_daemon_was_started_with(tmp_path: Path) -> None:
    """Neither for the processor (nice(2), sched(7)) nor when memory runs out (proc_pid_oom_score_adj(5))."""
    prefix = started("--nice", "-5", "--real-time", *(("--oom-score-adj", "-900") if MAY_LOWER_OOM_SCORE else ()))
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this root may not take precedence over others: CAP_SYS_NICE is missing")
    with running_daemon(tmp_path / "state", prefix=prefix) as daemon:
        seen = inspect(daemon)
        assert os.getpriority(os.PRIO_PROCESS, daemon.pid) == -5
    assert (seen["nice"], seen["scheduler"]) == (0, os.SCHED_OTHER)
    assert seen["oom_score_adj"] == max(0, OWN_OOM_SCORE)


def test_soft_limits_of_the_daemon_bind_neither_it_nor_its_jobs(tmp_path: Path) -> None:
    prefix = started("--limit", "FSIZE=4096", "--limit", "CPU=1")
    with running_daemon(tmp_path / "state", prefix=prefix) as daemon:
        found = inspect(daemon)["limits"]
        printed = daemon.workerctl("run", "--", "head", "-c", "1000000", "/dev/zero")
        said = daemon.errors()
    assert (printed.returncode, len(printed.stdout)) == (0, 1_000_000)
    for name in ("RLIMIT_FSIZE", "RLIMIT_CPU"):
        _, hard = resource.getrlimit(getattr(resource, name))
        assert found[name] == [hard, hard]
        assert (f"limit={name}" in said) == (hard != resource.RLIM_INFINITY)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_hard_limit_that_is_too_low_is_named_once_at_the_start(tmp_path: Path, processes: str) -> None:
    prefix = started("--limit", "FSIZE=8388608:8388608")
    with running_daemon(tmp_path / "state", "--processes", processes, prefix=prefix) as daemon:
        wait_until(lambda: "limit=RLIMIT_FSIZE" in daemon.errors(), "no limit was named")
        lines = [line for line in daemon.errors().splitlines() if "RLIMIT_" in line]
    assert len(lines) == 1, lines
    assert "value=8388608" in lines[0] and "raise the hard limit" in lines[0]


@as_root
def test_a_job_has_a_session_keyring_of_its_own(tmp_path: Path) -> None:
    """Not the daemon's, in which jobs of all accounts would find each other's keys (session-keyring(7))."""
    prefix = started("--key", KEY)
    shown = subprocess.run([*prefix, "cat", "/proc/keys"], capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        pytest.skip(f"there are no keyrings here: {shown.stderr.strip()}")
    assert KEY in shown.stdout
    with running_daemon(tmp_path / "state", "--run-as", "nobody", prefix=prefix) as daemon:
        found = daemon.workerctl("run", "--working-directory", "/", "--", "cat", "/proc/keys")
        assert KEY in Path("/proc/keys").read_text()
    assert found.returncode == 0, found.stderr
    keys = [line.split()[7:] for line in found.stdout.decode().splitlines()]
    assert ["keyring", "_ses:", "empty"] in keys
    assert KEY not in found.stdout.decode()


@as_root
def test_a_job_has_no_capability_of_the_daemons_by_inheritance() -> None:
    """The daemon has one as an ambient capability, which programs that it executes would keep (capabilities(7))."""
    with daemon_of(idle_account(), options=("--roles.admin", USER)) as daemon:
        assert "CapAmb:\t0000000000000000" not in Path(f"/proc/{daemon.pid}/status").read_text()
        result = daemon.workerctl("run", "--working-directory", "/", "--", "grep", "^Cap", "/proc/self/status")
    found = dict(line.split(":\t") for line in result.stdout.decode().splitlines())
    assert {name: int(value, 16) for name, value in found.items() if name != "CapBnd"} == {
        "CapInh": 0,
        "CapPrm": 0,
        "CapEff": 0,
        "CapAmb": 0,
    }
