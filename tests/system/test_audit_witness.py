"""A real daemon whose trail is removed, and witnesses of the trail."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.chain import Head, format_head, make_line
from audit.files import HEAD, file_name
from tests.daemon import Daemon, running_daemon
from tests.waiting import wait_until
from workerctl.exit_codes import ExitCode


def events(daemon: Daemon) -> list[dict[str, Any]]:
    lines = daemon.workerctl("audit", "show", str(daemon.state), "--output", "json").stdout.splitlines()
    return [json.loads(line) for line in lines]


def verify(daemon: Daemon, *options: str, code: ExitCode = ExitCode.OK) -> str:
    """Verify the daemon's trail, and return the output."""
    result = daemon.workerctl("audit", "verify", str(daemon.state), *options)
    assert result.returncode == code, result
    return (result.stdout + result.stderr).decode()


def cut(daemon: Daemon) -> None:
    """Remove the last two lines, so that the trail is in order."""
    [path] = (daemon.state / "audit").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)[:-2]
    path.write_bytes(b"".join(lines))
    last = json.loads(lines[-1])
    (daemon.state / "audit" / HEAD).write_bytes(format_head(Head(last["seq"], last["hash"])))


@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "cut"])
def test_a_trail_that_is_removed_while_the_daemon_is_stopped_is_missed(any_daemon: Daemon, is_deleted: bool) -> None:
    assert any_daemon.workerctl("run", "--", "true").returncode == 0
    any_daemon.stop()
    last = events(any_daemon)[-1]
    assert last["event"] == "daemon-stopped"
    assert "whole" in verify(any_daemon)
    if is_deleted:
        shutil.rmtree(any_daemon.state / "audit")
    else:
        cut(any_daemon)
        missed = f"the trail ends with line {last['seq'] - 2}, and the witness has line {last['seq']}: removed"
        assert missed in verify(any_daemon, code=ExitCode.LOG_DAMAGED)
    any_daemon.start()
    assert "the audit trail does not end as it was left" in any_daemon.errors()
    [resumed] = [event for event in events(any_daemon) if event["event"] == "resumed"]
    assert resumed["head"] == {"seq": last["seq"], "hash": last["hash"]}
    assert any_daemon.workerctl("run", "--", "true").returncode == 0
    assert f"(seq {resumed['seq']})" in verify(any_daemon, code=ExitCode.LOG_DAMAGED)
    assert "whole" in verify(any_daemon, "--from-seq", str(resumed["seq"]))
    any_daemon.stop()
    any_daemon.start()
    assert any_daemon.errors().count("the audit trail does not end as it was left") == 1


def test_a_daemon_that_is_killed_misses_nothing(any_daemon: Daemon) -> None:
    """Also if the last lines were not remembered yet."""
    any_daemon.stop()
    any_daemon.start()
    for _ in range(2):
        assert any_daemon.workerctl("whoami").returncode == 0
        assert any_daemon.process is not None
        any_daemon.process.kill()
        any_daemon.process.wait(timeout=30)
        any_daemon.start()
    assert "audit trail" not in any_daemon.errors()
    assert "whole" in verify(any_daemon)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "elsewhere" / "heads"


@pytest.fixture
def witnessed(tmp_path: Path, witness: Path) -> Iterator[Daemon]:
    """A daemon with a file as witness."""
    witness.parent.mkdir()
    with running_daemon(tmp_path / "state", "--audit-witness", str(witness)) as daemon:
        yield daemon


def test_a_whole_new_trail_is_found_by_a_witness(witnessed: Daemon, witness: Path) -> None:
    assert witnessed.workerctl("run", "--", "true").returncode == 0
    wait_until(lambda: witness.exists() and witness.read_text(), "no head is witnessed")
    assert witnessed.workerctl("run", "--", "true").returncode == 0
    witnessed.stop()
    lines = events(witnessed)
    told = re.findall(r"^\S+ (\d+):([0-9a-f]{64})$", witness.read_text(), re.MULTILINE)
    assert len(told) >= 2
    assert told[-1] == (str(lines[-1]["seq"]), lines[-1]["hash"])
    assert "witnessed" in verify(witnessed, "--witness", str(witness))
    head, data = Head(0, "0" * 64), b""
    for event in lines:
        forged = {name: value for name, value in event.items() if name not in ("seq", "time", "prev", "hash")}
        line, head = make_line(forged | {"from": "192.0.2.7"}, head, event["time"])
        data += line
    (witnessed.state / "audit" / file_name(1)).write_bytes(data)
    for path in (witnessed.state / "audit" / HEAD, witnessed.state / "audit-head"):
        path.write_bytes(format_head(head))
    assert "whole" in verify(witnessed)
    found = verify(witnessed, "--witness", str(witness), code=ExitCode.LOG_DAMAGED)
    assert f"(seq {told[0][0]}): it is not the line that the witness has" in found


def test_a_witness_that_cannot_be_told_is_a_warning(tmp_path: Path, witness: Path) -> None:
    with running_daemon(tmp_path / "state", "--audit-witness", str(witness)) as daemon:
        assert daemon.workerctl("run", "--", "true").returncode == 0
        wait_until(lambda: "the audit trail's head is not witnessed" in daemon.errors(), "no warning is logged")
        assert str(witness) in daemon.errors()
        assert daemon.workerctl("run", "--", "true").returncode == 0


def test_a_witness_in_the_state_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ended with 2: workerd: --audit-witness .* is in the state directory"):
        Daemon(tmp_path / "state", ("--audit-witness", str(tmp_path / "state" / "heads"))).start()


def test_a_file_without_a_head_is_no_witness(witnessed: Daemon, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    said = verify(witnessed, "--witness", str(tmp_path / "empty"), code=ExitCode.USAGE)
    assert f"--witness {tmp_path}/empty has no head" in said
