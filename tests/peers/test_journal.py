"""Heads in systemd's journal, and their comparison with a trail by `workerctl`."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, running_daemon
from tests.waiting import wait_until

JOURNALD = "/lib/systemd/systemd-journald"
SECONDS = 30
# In a mount namespace with an empty /run (mount_namespaces(7)), so that it is no journal of the machine's.
START = f"mount -t tmpfs tmpfs /run && mkdir -p /run/log/journal /run/systemd/journal && exec {JOURNALD}"


@pytest.fixture
def within() -> Iterator[tuple[str, ...]]:
    """Run a journal, and give the command that runs another one where its socket is."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a journal of its own: run `nox -s peers` as root")
    if not os.path.exists(JOURNALD) or shutil.which("nsenter") is None:
        pytest.skip(f"there is no {JOURNALD} or no nsenter: install Debian's systemd and util-linux")
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", START], stderr=subprocess.DEVNULL
    ) as journal:
        try:
            there = Path(f"/proc/{journal.pid}/root/run/systemd/journal/socket")
            wait_until(lambda: there.is_socket() or journal.poll() is not None, "the journal does not start")
            if journal.poll() is not None:
                pytest.skip("a mount namespace with a journal cannot be made here, as in a container without rights")
            yield ("nsenter", "--mount", f"--target={journal.pid}")
        finally:
            journal.terminate()
            journal.wait(SECONDS)


def shown(daemon: Daemon, within: tuple[str, ...]) -> str:
    """What `journalctl` shows of a daemon's heads."""
    command = ("journalctl", "-D", "/run/log/journal", "-o", "cat", f"WORKERD_AUDIT_DIRECTORY={daemon.state}/audit")
    return subprocess.run([*within, *command], capture_output=True, text=True, timeout=SECONDS, check=False).stdout


def test_a_trail_is_verified_against_what_the_journal_shows(within: tuple[str, ...], tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state", "--audit-witness", "journal", prefix=within) as daemon:
        assert daemon.workerctl("run", "--", "true").returncode == 0
        wait_until(lambda: "audit head " in shown(daemon, within), "the journal has no head")
        daemon.stop()
        told = shown(daemon, within)
        assert len(told.splitlines()) >= 2
        witness = tmp_path / "heads"
        witness.write_text(told)
        verify = ("audit", "verify", str(daemon.state), "--witness", str(witness))
        assert daemon.workerctl(*verify).returncode == 0
        assert "witnessed" not in daemon.errors()
        shutil.rmtree(daemon.state / "audit")
        (daemon.state / "audit-head").unlink()
        daemon.start()
        daemon.stop()
        verified = daemon.workerctl(*verify)  # a line is another, or missing: heads are sent once a second at most
        assert (verified.returncode, b"the witness has" in verified.stdout) == (121, True)
