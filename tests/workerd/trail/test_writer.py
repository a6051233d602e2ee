"""The writer of the audit trail: several at once, crashes, rotation, releases, and a trail that somebody touched."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.chain import GENESIS, MAX_LINE_BYTES, RELEASED, RESUMED, format_head, make_line, parse_head
from audit.files import HEAD, file_name, list_files
from audit.report import Report
from audit.verification import verify
from tests.audit.trails import TIME
from tests.locks import held_by_another
from workerd.errors import AuditFailed
from workerd.trail import writer
from workerd.trail.writer import AuditTrail

EVENT = {"event": "decision", "right": "stop", "user": {"id": "u", "name": "acrimon"}}
APPEND = """
import sys
from pathlib import Path
from workerd.trail.writer import AuditTrail
with AuditTrail(Path(sys.argv[1]), int(sys.argv[2])) as trail:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(sys.argv[3])):
        trail.record({"event": "decision", "writer": sys.argv[4], "n": number, "pad": "x" * (number % 300)})
        if number == 0:
            print("begun", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def trail(folder: Path) -> Iterator[AuditTrail]:
    with AuditTrail(folder, 0) as trail:
        yield trail


def events(folder: Path) -> list[dict[str, Any]]:
    """Every line, in order."""
    texts = ((folder / file.name).read_text() for file in list_files(folder))
    return [json.loads(line) for text in texts for line in text.splitlines()]


def last_file(folder: Path) -> Path:
    return folder / list_files(folder)[-1].name


def record_many(trail: AuditTrail, count: int) -> None:
    for _ in range(count):
        trail.record(EVENT)


def check_whole(folder: Path) -> Report:
    report = verify(folder)
    assert report.fault is None, report.fault
    head = parse_head((folder / HEAD).read_bytes())
    assert head is not None and head.seq in (report.head.seq, report.head.seq - 1)
    return report


def start_writer(folder: Path, max_bytes: int, count: int, name: str) -> subprocess.Popen[bytes]:
    """Start a process that appends as soon as it is told to."""
    command = [sys.executable, "-c", APPEND, str(folder), str(max_bytes), str(count), name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def go(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def close(process: subprocess.Popen[bytes]) -> int:
    code = process.wait(timeout=60)
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
    return code


def test_what_is_recorded_is_there_with_its_time_for_the_daemons_account_only(folder: Path, trail: AuditTrail) -> None:
    trail.record(EVENT)
    trail.record(EVENT | {"right": "status"})
    assert check_whole(folder).head.seq == 2
    first, second = events(folder)
    assert {name: first[name] for name in EVENT} == EVENT
    assert second["right"] == "status" and first["time"] <= second["time"]
    assert first["time"].endswith("+00:00") and len(first["time"]) == len(TIME)
    assert [path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())] == [0o700, 0o600, 0o600]


def test_a_line_that_denies_holds_little_of_what_was_asked(folder: Path, trail: AuditTrail) -> None:
    request = {"program": "p" * 60_000, "args": ["a" * 1000] * 50, "envs": [f"NAME{n}" for n in range(5000)]}
    event = EVENT | {"action": "spawn", "request": request, "policies": ["default"]}
    trail.record(event | {"verdict": "deny"})
    trail.record(event | {"verdict": "permit"})
    denied, permitted = last_file(folder).read_bytes().splitlines(keepends=True)
    assert len(denied) <= 2048 < len(permitted)
    line = json.loads(denied)
    assert (line["user"], line["action"], line["verdict"]) == (EVENT["user"], "spawn", "deny")
    assert line["request"]["program"] == "p" * 64 + "… (60000 characters)"
    assert "cut_from_sha256" not in line and json.loads(permitted)["cut_from_bytes"] > 100_000
    assert check_whole(folder).head.seq == 2


def test_a_trail_is_gone_on_with(folder: Path) -> None:
    for number in range(3):
        with AuditTrail(folder, 0) as trail:
            trail.record({"n": number})
            trail.record({"n": number})
    assert [event["n"] for event in events(folder)] == [0, 0, 1, 1, 2, 2]
    assert check_whole(folder).head.seq == 6 and len(list_files(folder)) == 1


@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_several_processes_append_at_once_and_no_line_is_lost(folder: Path, max_bytes: int) -> None:
    count = 2000
    processes = [start_writer(folder, max_bytes, count, str(number)) for number in range(4)]
    for process in processes:
        go(process)
    while any(process.poll() is None for process in processes):  # verification waits for nobody, and nobody for it
        if (folder / HEAD).exists() and list_files(folder):
            assert verify(folder).fault is None
    assert [close(process) for process in processes] == [0] * 4
    report = check_whole(folder)
    told = events(folder)
    released = [event for event in told if event["event"] == RELEASED]
    assert bool(released) == bool(max_bytes)
    assert report.first == (released[-1]["last"]["seq"] + 1 if released else 1)
    for number in range(4):
        numbers = [event["n"] for event in told if event.get("writer") == str(number)]
        assert numbers == list(range(count - len(numbers), count))
    if not max_bytes:
        assert report.head.seq == 4 * count


def test_writers_that_are_killed_leave_a_trail_that_is_whole_and_can_be_gone_on_with(folder: Path) -> None:
    for round_number in range(5):
        processes = [start_writer(folder, 0, 10**6, f"{round_number}.{number}") for number in range(2)]
        for process in processes:
            go(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
        for process in processes:
            process.send_signal(signal.SIGKILL)
            assert close(process) == -signal.SIGKILL
        verified = verify(folder)
        assert verified.fault is None
        with AuditTrail(folder, 0) as trail:
            trail.record({"event": "after"})
        assert check_whole(folder).head.seq == verified.head.seq + 1


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 400), st.integers(0, 2))
def test_a_line_that_a_crash_cut_off_anywhere_is_removed_by_the_next(
    tmp_path_factory: Any, length: int, behind: int
) -> None:
    """And a head that had not been brought forward is, if the line was whole."""
    folder = tmp_path_factory.mktemp("trail") / "audit"
    with AuditTrail(folder, 0) as trail:
        for _ in range(behind):
            trail.record(EVENT)
        if behind == 0:
            folder.mkdir()
            (folder / HEAD).write_bytes(format_head(GENESIS))
            (folder / "audit-000000000001.jsonl").touch()
        before = verify(folder).head
        line, _ = make_line({"event": "decision", "pad": "x" * 100}, before, TIME)
        piece = line[:length]
        with open(last_file(folder), "ab") as file:
            file.write(piece)
        whole = piece == line
        report = verify(folder)
        assert (report.fault, report.unfinished_bytes) == (None, 0 if whole else len(piece))
        if length % 2:  # another that looks anew, or this one, which finds that somebody has written
            trail.close()
        trail.record(EVENT)
    report = check_whole(folder)
    assert (report.head.seq, report.unfinished_bytes) == (before.seq + whole + 1, 0)
    assert RESUMED not in [event["event"] for event in events(folder)]


def test_a_new_file_is_begun_when_one_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FILE_BYTES", 200_000)
    with AuditTrail(folder, 0) as one, AuditTrail(folder, 0) as other:
        for _ in range(100):
            one.record(EVENT | {"pad": "x" * 5000})
            other.record(EVENT | {"pad": "x" * 5000})
    files = list_files(folder)
    assert check_whole(folder).head.seq == 200 and len(files) > 4
    for file in files[:-1]:
        found = (folder / file.name).stat()
        assert 200_000 <= found.st_size < 200_000 + MAX_LINE_BYTES
        assert found.st_blocks * 512 - found.st_size < 4 * 4096, "what was set aside behind its end is still taken"


def test_the_oldest_goes_when_there_is_too_much_and_the_trail_says_so(folder: Path) -> None:
    limit = 1 << 20
    with AuditTrail(folder, limit) as trail:
        for _ in range(8000):
            trail.record(EVENT)
            assert sum(path.stat().st_size for path in folder.iterdir()) < limit + 2 * MAX_LINE_BYTES
    report = check_whole(folder)
    assert report.first > 1
    releases = [event for event in events(folder) if event["event"] == RELEASED]
    assert releases[-1]["last"]["seq"] == report.first - 1
    assert sum(path.stat().st_size for path in folder.iterdir()) > limit // 2


def test_a_release_that_was_cut_off_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the line that says so, and before the file was removed."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("killed")

    with AuditTrail(folder, 1 << 20) as trail:
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", fail)
            with pytest.raises(AuditFailed):
                record_many(trail, 8000)
        assert check_whole(folder).first == 1
        trail.record(EVENT)
    assert check_whole(folder).first > 1


def test_the_oldest_goes_though_somebody_changed_its_last_line_and_that_stays_a_fault(folder: Path) -> None:
    with AuditTrail(folder, 1 << 20) as trail:
        trail.record(EVENT)
        while len(list_files(folder)) < 2:
            trail.record(EVENT | {"pad": "x" * 5000})
        oldest = folder / list_files(folder)[0].name
        oldest.write_bytes(oldest.read_bytes()[:-3] + b"x\n")
        with structlog.testing.capture_logs() as logs:
            while oldest.exists():
                trail.record(EVENT | {"pad": "x" * 5000})
    assert [each["file"] for each in logs if each["log_level"] == "error"] == [oldest.name]
    assert verify(folder).fault is not None


def cut_a_line(folder: Path) -> None:
    path = last_file(folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def spoil_the_last_line(folder: Path) -> None:
    path = last_file(folder)
    path.write_bytes(path.read_bytes().replace(b'"n":4', b'"n":5'))


def remove_the_head(folder: Path) -> None:
    (folder / HEAD).unlink()


def empty_the_head(folder: Path) -> None:
    (folder / HEAD).write_bytes(b"")


def remove_the_lines(folder: Path) -> None:
    last_file(folder).unlink()


def empty_the_file(folder: Path) -> None:
    last_file(folder).write_bytes(b"")


def end_without_end(folder: Path) -> None:
    with open(last_file(folder), "ab") as file:
        file.write(b"x" * 4 * MAX_LINE_BYTES + b"\n")


@pytest.mark.parametrize("looks_anew", [True, False])
@pytest.mark.parametrize(
    "touch",
    [
        cut_a_line,
        spoil_the_last_line,
        remove_the_head,
        empty_the_head,
        remove_the_lines,
        empty_the_file,
        end_without_end,
    ],
)
def test_a_trail_that_was_touched_is_gone_on_with_and_stays_a_fault(
    folder: Path, touch: Callable[[Path], None], looks_anew: bool
) -> None:
    with AuditTrail(folder, 0) as trail:
        for number in range(5):
            trail.record({"event": "decision", "n": number})
        touch(folder)
        assert verify(folder).fault is not None
        if looks_anew:
            trail.close()
        with structlog.testing.capture_logs() as logs:
            trail.record({"event": "after"})
            trail.record({"event": "after"})
    if not looks_anew and touch is spoil_the_last_line:
        return  # a file that is as long as it was is not read again before each line
    assert [each["event"] for each in logs if each["log_level"] == "error"] == [
        "the audit trail does not end as it was left"
    ]
    fault = verify(folder).fault
    assert fault is not None
    tail = [json.loads(line) for line in last_file(folder).read_bytes().splitlines()[-3:]]
    assert [event["event"] for event in tail] == [RESUMED, "after", "after"]
    assert verify(folder, from_seq=tail[0]["seq"]).fault is None


def test_a_folder_that_is_moved_away_is_left_and_another_is_begun(folder: Path, trail: AuditTrail) -> None:
    trail.record(EVENT)
    folder.rename(folder.with_name("kept"))
    with structlog.testing.capture_logs() as logs:
        trail.record(EVENT)
        trail.record(EVENT)
    assert [each["event"] for each in logs] == [
        "the audit trail was moved away, and another is begun",
        "the audit trail does not end as it was left",
    ]
    kept = check_whole(folder.with_name("kept")).head
    assert kept.seq == 1
    assert [event["event"] for event in events(folder)] == [RESUMED, "decision", "decision"]
    assert events(folder)[0]["prev"] == kept.hash
    assert verify(folder, from_seq=2).fault is None


def test_a_file_that_somebody_begun_and_did_not_come_to_write_is_taken_over(
    folder: Path, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail, "_file_bytes", 1)  # each line begins a new one
    trail.record(EVENT)
    (folder / file_name(2)).touch()
    trail.record(EVENT)
    assert check_whole(folder).head.seq == 2


def test_an_event_of_the_trails_own_is_refused(trail: AuditTrail) -> None:
    for name in (RELEASED, RESUMED):
        with pytest.raises(ValueError, match=name):
            trail.record({"event": name, "last": {"seq": 1, "hash": ""}})


@pytest.mark.parametrize("event", [{"n": float("nan")}, {"n": object()}, {"seq": 1}])
def test_what_is_no_event_leaves_the_trail_as_it_was(folder: Path, trail: AuditTrail, event: dict[str, Any]) -> None:
    trail.record(EVENT)
    with pytest.raises((ValueError, TypeError)):
        trail.record(event)
    trail.record(EVENT)
    assert check_whole(folder).head.seq == 2


def test_a_trail_that_cannot_be_written_says_what_to_do_and_is_written_when_it_can(tmp_path: Path) -> None:
    (tmp_path / "audit").touch()
    with AuditTrail(tmp_path / "audit", 0) as trail:
        with pytest.raises(AuditFailed, match=r"cannot write its audit trail \(File exists\).*make room.*try again"):
            trail.record(EVENT)
        (tmp_path / "audit").unlink()
        trail.record(EVENT)
    assert check_whole(tmp_path / "audit").head.seq == 1


@pytest.mark.parametrize("call", ["write", "pwrite"])
def test_a_line_that_could_not_be_written_whole_is_taken_back(
    folder: Path, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The line, or the head that is to name it."""
    trail.record(EVENT)
    real = getattr(os, call)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda file, data, *where: real(file, data[:50], *where))
        with pytest.raises(AuditFailed):
            trail.record(EVENT)
    report = check_whole(folder)
    assert (report.head.seq, report.unfinished_bytes) == (1, 0)
    trail.record(EVENT)
    assert check_whole(folder).head.seq == 2


def test_no_descriptor_is_left_open(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_FILE_BYTES", 4_000)
    before = set(os.listdir("/proc/self/fd"))
    with AuditTrail(folder, 0) as one, AuditTrail(folder, 0) as other:
        for _ in range(50):
            one.record(EVENT)
            other.record(EVENT)
        remove_the_head(folder)
        one.record(EVENT)
        verify(folder)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_trail_goes_on_in_another_file_where_one_may_not_grow(folder: Path) -> None:
    """As `ulimit -f` has it: getrlimit(2), RLIMIT_FSIZE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MAX_LINE_BYTES, hard))
    try:
        with AuditTrail(folder, 0) as trail:
            for _ in range(20):
                trail.record({**EVENT, "pad": "x" * (MAX_LINE_BYTES // 2)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert check_whole(folder).head.seq == 20
    assert len(list_files(folder)) > 2


def test_a_trail_that_another_program_locks_is_an_error_that_names_the_program(
    folder: Path, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is refused first has waited for it, and the next hardly at all; once it is free, lines are written."""
    monkeypatch.setattr(writer, "_STILL_LOCKED_SECONDS", 0.0)
    trail.record(EVENT)
    with held_by_another(folder) as holder:
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(AuditFailed, match=rf"process {holder} \(sleep\) .*: end that process"):
                trail.record(EVENT)
        assert time.monotonic() - began < 2 * writer._LOCK_SECONDS
    trail.record(EVENT)
    assert len(events(folder)) == 2
    assert trail._lock_seconds == writer._LOCK_SECONDS
