"""A daemon whose state directory is removed or moved away: it says so once and ends, and its jobs run on."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from system import pidfd
from tests.daemon import Daemon, running_daemon
from tests.waiting import wait_until
from workerd.engine.tree import parent_of

GONE = "was removed or moved"
LIMIT_SECONDS = 40.0


def removed(state: Path) -> None:
    subprocess.run(["rm", "-rf", state], check=True, timeout=30)  # as people do it


def without_lock(state: Path) -> None:
    """What another daemon would not find either."""
    (state / "lock").unlink()


def moved(state: Path) -> None:
    state.rename(state.with_name("elsewhere"))


def moved_from_above(state: Path) -> None:
    state.parent.rename(state.parent.with_name("elsewhere"))


@pytest.mark.parametrize("processes", ["1", "2"], ids=["one process", "several processes"])
@pytest.mark.parametrize("away", [removed, without_lock, moved, moved_from_above])
async def test_a_daemon_without_its_state_directory_says_so_once_and_ends_and_its_jobs_run_on(
    tmp_path: Path, away: Callable[[Path], None], processes: str
) -> None:
    state = tmp_path / "above" / "state"
    with running_daemon(state, "--processes", processes) as daemon:
        job_id = daemon.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
        async with daemon.client() as client:
            job = (await client.status(job_id)).pid
        supervisor = parent_of(job)
        assert supervisor is not None
        assert daemon.process is not None
        with pidfd.hold(job) as program, pidfd.hold(supervisor) as watching, (state / "stderr").open() as errors:
            away(state)
            assert daemon.process.wait(LIMIT_SECONDS) == 1
            daemon.process = None
            said = errors.read()
            assert said.count(GONE) == 1, said
            assert "Traceback" not in said, said
            assert not pidfd.has_ended(program)
            assert not state.exists() or away is without_lock
            signal.pidfd_send_signal(program, signal.SIGKILL)
            assert pidfd.wait_ended(watching, LIMIT_SECONDS)


def test_a_state_directory_that_was_moved_away_is_served_where_it_is(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state") as daemon:
        job_id = daemon.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
        moved(daemon.state)
        assert daemon.process is not None
        daemon.process.wait(LIMIT_SECONDS)
    with running_daemon(tmp_path / "elsewhere") as daemon:
        assert b"state:      running" in daemon.workerctl("status", job_id).stdout


def test_a_daemon_whose_state_directory_was_replaced_leaves_the_new_one_alone(tmp_path: Path) -> None:
    """As a reset by hand does it: remove all, and start another."""
    with running_daemon(tmp_path / "state") as daemon:
        assert daemon.process is not None
        old = daemon.process
        moved(daemon.state)
        with running_daemon(tmp_path / "state") as new:
            wait_until(lambda: old.poll() is not None, "the end of the daemon")
            assert new.workerctl("whoami").returncode == 0
            assert (new.state / "lock").read_text() == str(new.pid)
            assert (new.state / "endpoint").exists()
        daemon.process = None


def test_the_lock_of_a_daemon_that_has_ended_names_no_process(daemon: Daemon) -> None:
    """Its id may be another process's by the time somebody looks."""
    lock = daemon.state / "lock"
    assert lock.read_text() == str(daemon.pid)
    daemon.stop()
    assert lock.read_text() == ""
    daemon.start()
    daemon.stop(signal.SIGKILL)
    assert os.path.exists(lock)
