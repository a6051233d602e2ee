"""The audit trail on a full disk: it goes on for as long as there is room that was set aside, and then says so."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ErrorDetail, ErrorReason

from audit.files import list_files
from audit.verification import verify
from tests.small_disk import fill, make_room, small_disk
from workerd.engine import linux
from workerd.errors import AuditFailed, to_grpc
from workerd.trail import writer
from workerd.trail.writer import AuditTrail

DISK_BYTES = 32 << 20
EVENT = {"event": "decision", "right": "stop", "user": {"id": "u", "name": "acrimon"}}
_RESERVE_BYTES = writer._ROOM_BYTES // writer._RESERVE
LINES_SET_ASIDE = (writer._ROOM_BYTES // 2 - _RESERVE_BYTES - 4096) // 400
"""So many of these lines can be counted on: room is renewed when half of it is used, and a part is a reserve."""


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", DISK_BYTES, 1 << 20, request.param):
        yield tmp_path / "disk"


def append_to_the_end(trail: AuditTrail) -> int:
    """Append until there is no room left, and return how many lines there was room for."""
    for count in range(10**6):
        try:
            trail.record(EVENT)
        except AuditFailed:
            return count
    raise AssertionError("the disk is not full")


def check(folder: Path, lines: int) -> None:
    report = verify(folder)
    assert (report.fault, report.unfinished_bytes, report.head.seq) == (None, 0, lines)


def test_a_full_disk_takes_some_more_lines_then_none_and_all_when_there_is_room(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_LOOK_SECONDS", 0.0)
    folder = disk / "audit"
    with AuditTrail(folder, 0) as trail:
        trail.record(EVENT)
        fill(disk)
        count = append_to_the_end(trail)
        assert count >= LINES_SET_ASIDE
        for _ in range(3):
            with pytest.raises(AuditFailed, match=r"No space left on device.*make room on the disk of its state"):
                trail.record(EVENT)
            check(folder, 1 + count)
        make_room(disk)
        trail.record(EVENT)
        check(folder, 2 + count)
        fill(disk)
        assert append_to_the_end(trail) >= LINES_SET_ASIDE, "room is set aside again"


def test_on_a_full_disk_there_is_a_reserve_for_what_is_urgent(disk: Path) -> None:
    folder = disk / "audit"
    with AuditTrail(folder, 0) as trail:
        trail.record(EVENT)
        fill(disk)
        count = append_to_the_end(trail)
        urgent = (_RESERVE_BYTES - 8192) // 400
        for _ in range(urgent):
            trail.record(EVENT, urgent=True)
        with pytest.raises(AuditFailed):
            trail.record(EVENT)
    check(folder, 1 + count + urgent)


def test_a_daemon_that_starts_on_a_full_disk_has_what_the_one_before_set_aside(disk: Path) -> None:
    folder = disk / "audit"
    with AuditTrail(folder, 0) as trail:
        trail.record(EVENT)
    fill(disk)
    with AuditTrail(folder, 0) as trail:
        count = append_to_the_end(trail)
    assert count >= LINES_SET_ASIDE
    check(folder, 1 + count)


def test_a_file_that_is_full_is_gone_on_with_where_there_is_no_room_for_another(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_FILE_BYTES", 4 * writer._ROOM_BYTES)
    monkeypatch.setattr(writer, "_LOOK_SECONDS", 0.0)
    folder = disk / "audit"
    with AuditTrail(folder, 0) as trail:
        trail.record(EVENT)
        size = 0
        while size < 4 * writer._ROOM_BYTES - 8192:
            trail.record(EVENT | {"pad": "x" * 60_000})
            size = (folder / list_files(folder)[0].name).stat().st_size
        fill(disk)
        count = append_to_the_end(trail)
        assert count >= LINES_SET_ASIDE
        assert len(list_files(folder)) == 1
        make_room(disk)
        trail.record(EVENT)
    assert len(list_files(folder)) == 2
    assert verify(folder).fault is None


def test_a_full_disk_that_releases_the_oldest_file_goes_on(disk: Path) -> None:
    folder = disk / "audit"
    with AuditTrail(folder, 4 << 20) as trail:
        trail.record(EVENT)
        fill(disk)
        for _ in range(200):
            trail.record(EVENT)
    assert verify(folder).fault is None


def test_a_file_system_that_can_set_nothing_aside_is_written_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(linux, "set_room_aside", refuse)
    monkeypatch.setattr(writer, "_FILE_BYTES", 4_000)
    with AuditTrail(tmp_path / "audit", 0) as trail:
        for _ in range(30):
            trail.record(EVENT)
    assert len(list_files(tmp_path / "audit")) > 1
    check(tmp_path / "audit", 30)


def test_a_call_that_cannot_be_told_gets_a_reason_and_what_to_do() -> None:
    answer = to_grpc(AuditFailed(os.strerror(errno.ENOSPC)))
    assert answer.status is Status.RESOURCE_EXHAUSTED
    assert answer.details == [ErrorDetail(reason=ErrorReason.AUDIT_FAILED)]
    assert "make room" in str(answer.message)
