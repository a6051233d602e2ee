"""The cgroup that a daemon is started in, and who may change it."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.ownership import account_name
from tests.daemon import running_daemon
from workerd.engine import cgroup

_STRANGER = 65_534
_MOVE = 'echo $$ >"$0" && exec "$@"'


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A cgroup as systemd delegates it, with another below (systemd.resource-control(5), Delegate=)."""
    mount = cgroup._mount_point()
    if os.geteuid() != 0 or mount is None or not os.access(mount / "cgroup.procs", os.W_OK):
        pytest.skip("needs root and a cgroup2 hierarchy that can be written to")
    top = mount / f"workerd-test-{os.getpid()}"
    below = top / "below"
    below.mkdir(parents=True)
    try:
        yield below
    finally:
        (top / "cgroup.kill").write_text("1")
        limit = time.monotonic() + 10
        for directory in [*sorted((path for path in top.rglob("*/") if path.is_dir()), reverse=True), top]:
            while directory.exists():
                with contextlib.suppress(OSError):
                    directory.rmdir()
                assert time.monotonic() < limit, f"{directory} is still in use"


@pytest.mark.parametrize("account", [0, _STRANGER], ids=["root", "another"])
@pytest.mark.parametrize("count", ["1", "2"])
def test_a_daemon_in_another_accounts_cgroup_warns_and_makes_none_for_jobs(
    delegated: Path, tmp_path: Path, account: int, count: str
) -> None:
    for path in (delegated.parent, delegated.parent / "cgroup.procs"):
        os.chown(path, account, -1)
    prefix = ("sh", "-c", _MOVE, str(delegated / "cgroup.procs"))
    with running_daemon(tmp_path / "state", "--processes", count, prefix=prefix) as daemon:
        job_cgroup = daemon.workerctl("run", "--", "cat", "/proc/self/cgroup").stdout.decode()
        errors = daemon.errors()
    assert f"/{delegated.parent.name}/below" in job_cgroup
    assert ("/below/workerd/" in job_cgroup) == (account == 0)
    assert ("another account can end, freeze and move" in errors) == (account != 0)
    if account:
        assert str(delegated.parent) in errors
        assert f"belongs to {account_name(_STRANGER)}" in errors


@pytest.mark.parametrize("name", ["cgroup.procs", "cgroup.kill"])
def test_a_control_above_that_others_may_write_to_is_found(tmp_path: Path, name: str) -> None:
    own = tmp_path / "above" / "own"
    own.mkdir(parents=True)
    for directory in (own, own.parent):
        for each in ("cgroup.procs", "cgroup.kill"):
            (directory / each).touch(0o644)
    way = [own, own.parent]
    assert cgroup._find_foreign(way) is None
    (own.parent / name).chmod(0o666)
    found = cgroup._find_foreign(way)
    assert found is not None
    assert found.path == own.parent / name
