"""The head that is remembered beside a trail: what is missed by it, and what is not."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from audit.chain import RELEASED, RESUMED, Head, format_head, parse_head
from audit.files import HEAD, file_name, list_files
from audit.verification import verify
from workerd.trail import writer
from workerd.trail.remembered import RememberedHead, synced_head
from workerd.trail.writer import AuditTrail

EVENT = {"event": "decision", "right": "stop"}
RECORD_UNTIL_KILLED = """
import sys
from pathlib import Path
from workerd.trail.remembered import RememberedHead
from workerd.trail.writer import AuditTrail
with AuditTrail(Path(sys.argv[1]), 0, RememberedHead(Path(sys.argv[2]))) as trail:
    while True:
        trail.record({"event": "decision"})
        print(flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def remembered(tmp_path: Path) -> RememberedHead:
    return RememberedHead(tmp_path / "audit-head")


def record(folder: Path, remembered: RememberedHead, count: int, max_bytes: int = 0) -> list[str]:
    """Record as a daemon that is started and ended; return what it logs as errors."""
    with structlog.testing.capture_logs() as logs, AuditTrail(folder, max_bytes, remembered) as trail:
        for _ in range(count):
            trail.record(EVENT)
    return [each["event"] for each in logs if each["log_level"] == "error"]


def remember(folder: Path, remembered: RememberedHead) -> Head:
    """Remember the trail's head, as a daemon does when it ends."""
    head = synced_head(folder, None)
    assert head is not None
    remembered.keep(head)
    return head


def events(folder: Path) -> list[dict[str, Any]]:
    texts = ((folder / file.name).read_text() for file in list_files(folder))
    return [json.loads(line) for text in texts for line in text.splitlines()]


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def delete_the_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def cut_the_last_lines(folder: Path) -> None:
    """Remove lines and name the one before in the head, so that the trail is in order."""
    [path] = folder.glob("*.jsonl")
    kept = path.read_bytes().splitlines(keepends=True)[:-2]
    path.write_bytes(b"".join(kept))
    last = json.loads(kept[-1])
    (folder / HEAD).write_bytes(format_head(Head(last["seq"], last["hash"])))


def replace_by_another(folder: Path) -> None:
    """Put a trail with as many lines in its place, which is in order."""
    delete(folder)
    with AuditTrail(folder, 0) as trail:
        for number in range(9):
            trail.record({"event": "forged", "n": number})


@pytest.mark.parametrize("touch", [delete, delete_the_files, cut_the_last_lines, replace_by_another])
def test_a_trail_that_does_not_continue_what_is_remembered_says_so_once(
    folder: Path, remembered: RememberedHead, touch: Callable[[Path], None]
) -> None:
    assert record(folder, remembered, 5) == []
    head = remember(folder, remembered)
    touch(folder)
    assert record(folder, remembered, 1) == ["the audit trail does not end as it was left"]
    [resumed, after] = events(folder)[-2:]
    assert (resumed["event"], resumed["head"]) == (RESUMED, {"seq": head.seq, "hash": head.hash})
    assert after["event"] == "decision"
    fault = verify(folder).fault
    assert fault is not None and fault.seq == resumed["seq"] and "the daemon found that" in fault.problem
    assert record(folder, remembered, 1) == []


@pytest.mark.parametrize("touch", [delete, delete_the_files, cut_the_last_lines])
def test_a_trail_that_is_removed_while_its_writer_runs_says_so(folder: Path, touch: Callable[[Path], None]) -> None:
    with AuditTrail(folder, 0) as trail:
        for _ in range(5):
            trail.record(EVENT)
        touch(folder)
        trail.record(EVENT)
    assert [event["event"] for event in events(folder)][-2:] == [RESUMED, "decision"]
    assert verify(folder).fault is not None


def test_a_trail_that_was_moved_away_is_whole_together_with_what_follows_it(
    folder: Path, remembered: RememberedHead
) -> None:
    """No number is given twice, so an archive and what came after it are one trail again in one folder."""
    record(folder, remembered, 5)
    remember(folder, remembered)
    archive = folder.rename(folder.with_name("archive"))
    record(folder, remembered, 2)
    assert [event["seq"] for event in events(folder)] == [6, 7, 8]
    assert verify(folder, from_seq=6).fault is None
    shutil.copy(archive / file_name(1), folder)
    report = verify(folder)
    assert (report.fault, report.first, report.head.seq) == (None, 1, 8)


def test_a_head_that_is_behind_is_continued(folder: Path, remembered: RememberedHead) -> None:
    record(folder, remembered, 5)
    remember(folder, remembered)
    assert record(folder, remembered, 5) == []
    assert record(folder, remembered, 5) == []
    assert verify(folder).head.seq == 15


def test_lines_that_were_released_are_not_missed(
    folder: Path, remembered: RememberedHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_FILE_BYTES", 1_000)
    record(folder, remembered, 5)
    remember(folder, remembered)
    assert record(folder, remembered, 200, max_bytes=1 << 13) == []
    assert list_files(folder)[0].first_seq > 5
    assert record(folder, remembered, 1, max_bytes=1 << 13) == []
    names = {event["event"] for event in events(folder)}
    assert names == {"decision", RELEASED}
    monkeypatch.undo()
    for file in list_files(folder)[:2]:  # which the trail does not say
        (folder / file.name).unlink()
    assert record(folder, remembered, 1) == ["the audit trail does not end as it was left"]


def test_what_is_remembered_is_on_the_disk_before(
    folder: Path, remembered: RememberedHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every file with a line since the last time, and of the folder: a power cut takes none of these lines back."""
    monkeypatch.setattr(writer, "_FILE_BYTES", 1_000)
    synced: list[str] = []

    def note(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
            real(descriptor)

        return sync

    monkeypatch.setattr(os, "fdatasync", note(os.fdatasync))
    monkeypatch.setattr(os, "fsync", note(os.fsync))
    record(folder, remembered, 20)
    first = synced_head(folder, None)
    assert first is not None
    names = [file.name for file in list_files(folder)]
    assert set(synced) == {*names, "audit", folder.parent.name}
    synced.clear()
    assert synced_head(folder, first) == first and synced == []
    record(folder, remembered, 20)
    second = synced_head(folder, first)
    assert second is not None and second.seq == 40
    later = [file.name for file in list_files(folder) if file.first_seq > first.seq]
    assert len(later) > 1
    assert {*later, "audit", folder.parent.name} <= set(synced)
    assert not {*synced} & {*names[:-1]}


def test_a_writer_that_is_killed_is_continued(folder: Path, remembered: RememberedHead, tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", RECORD_UNTIL_KILLED, str(folder), str(tmp_path / "audit-head")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(20):
                assert process.stdout.readline()
            remember(folder, remembered)
            process.send_signal(signal.SIGKILL)
    assert record(folder, remembered, 1) == []
    assert verify(folder).fault is None


def test_a_remembered_head_that_was_changed_is_told_and_the_trail_goes_on(
    folder: Path, remembered: RememberedHead, tmp_path: Path
) -> None:
    record(folder, remembered, 5)
    (tmp_path / "audit-head").write_text("5")
    assert record(folder, remembered, 1) == ["the remembered head of the audit trail cannot be used"]
    assert verify(folder).head.seq == 6


def test_a_remembered_head_is_replaced_as_a_whole_and_private(remembered: RememberedHead, tmp_path: Path) -> None:
    for seq in (1, 2):
        remembered.keep(Head(seq, "a" * 64))
        assert parse_head((tmp_path / "audit-head").read_bytes()) == remembered.read() == Head(seq, "a" * 64)
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("audit-head", 0o600)]
