"""The command audit: what it prints, what it chooses, and what it exits with."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.chain import GENESIS, format_head, make_line
from audit.files import HEAD, file_name
from tests.audit.trails import make_trail, write_trail
from workerctl.app import main_with
from workerctl.exit_codes import ExitCode

ALICE = {"id": "123e4567-e89b-42d3-a456-426614174000", "name": "alice"}
BOB = {"id": "223e4567-e89b-42d3-a456-426614174000", "name": "bob"}
JOB = "86f97169-77b4-53a5-8212-33c37454712a"
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("2026-11-24T10:00:00.000001+00:00", {"event": "daemon-started", "pid": 7}),
    ("2026-11-24T11:00:00.000001+00:00", {"event": "decision", "user": ALICE, "right": "spawn", "args": ["a b", "c"]}),
    ("2026-11-24T12:00:00.000001+00:00", {"event": "decision", "user": BOB, "right": "stop", "job_id": JOB}),
    (
        "2026-11-24T13:00:00.000001+00:00",
        {"event": "job-ended", "job_id": JOB, "owner": ALICE, "end": {"stopped": {"by": BOB, "signal": 15}}},
    ),
    (
        "2026-11-24T14:00:00.000001+00:00",
        {
            "event": "decision",
            "verdict": "deny",
            "action": "impersonate",
            "rpc": "/worker.v1.WorkerService/WhoAmI",
            "user": ALICE,
            "other_user": {"id": "dave's", "name": "dave"},
            "with": "eve",
            "note": "\x1b[31mred\nline ü",
        },
    ),
]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with a trail of two files."""
    head, files = GENESIS, {file_name(1): b"", file_name(4): b""}
    for number, (time, event) in enumerate(EVENTS):
        line, head = make_line(event, head, time)
        files[file_name(1 if number < 3 else 4)] += line
    write_trail(tmp_path / "audit", files | {HEAD: format_head(head)})
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *arguments: str, code: ExitCode = ExitCode.OK) -> str:
    """Run the command, and give what it prints on standard output."""
    assert main_with(["audit", *arguments]) == code
    out, err = capfd.readouterr()
    assert (err == "") == (code in (ExitCode.OK, ExitCode.LOG_DAMAGED))
    return out


def shown(capfd: pytest.CaptureFixture[str], state: Path, *options: str) -> list[int]:
    """The numbers of the lines that are shown, which are the same in both forms."""
    out = run(capfd, "show", str(state), *options, "--output", "json")
    numbers = [json.loads(line)["seq"] for line in out.splitlines()]
    texts = run(capfd, "show", str(state), *options).splitlines()
    assert [int(text.split("  ")[1]) for text in texts] == numbers
    return numbers


def test_a_remembered_head_that_cannot_be_read_is_left_out(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for make in (os.mkfifo, Path.mkdir, Path.touch):
        path = state / "audit-head"
        make(path)
        assert main_with(["audit", "verify", str(state)]) == 0
        out, err = capfd.readouterr()
        assert "whole" in out
        assert err == f"workerctl: the trail is not compared with {path}, which cannot be read\n"
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_trail_that_is_whole_is_said_to_be_with_the_head_to_keep(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = dict(line.split(":", 1) for line in run(capfd, "verify", str(state)).splitlines())
    assert (lines["lines"].strip(), lines["state"].strip()) == ("1 to 5", "whole")
    kept = lines["head"].strip()
    assert "whole" in run(capfd, "verify", str(state), "--expect", kept)
    plain = json.loads(run(capfd, "verify", str(state / "audit"), "--output", "json"))
    assert plain == {
        "whole": True,
        "first_seq": 1,
        "last_seq": 5,
        "last_hash": kept.partition(":")[2],
        "unfinished_bytes": 0,
        "witnessed": 0,
    }


def test_a_trail_that_was_changed_is_said_to_be_damaged_and_where(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = state / "audit" / file_name(4)
    path.write_bytes(path.read_bytes().replace(b'"signal":15', b'"signal":14'))
    out = run(capfd, "verify", str(state), code=ExitCode.LOG_DAMAGED)
    assert f"damaged: {file_name(4)}, line 1 (seq 4): the line was changed" in out
    plain = json.loads(run(capfd, "verify", str(state), "--output", "json", code=ExitCode.LOG_DAMAGED))
    assert (plain["whole"], plain["fault"]["file"], plain["fault"]["line"], plain["fault"]["seq"]) == (
        False,
        file_name(4),
        1,
        4,
    )
    assert "5 to 5" in run(capfd, "verify", str(state), "--from-seq", "5")


def test_a_tail_that_was_removed_with_its_head_is_found_by_the_head_that_was_kept(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = json.loads(run(capfd, "verify", str(state), "--output", "json"))
    for name in (HEAD, file_name(4)):
        (state / "audit" / name).unlink()
    shorter = make_trail([3])
    (state / "audit" / file_name(1)).write_bytes(shorter[file_name(1)])
    (state / "audit" / HEAD).write_bytes(shorter[HEAD])
    assert "whole" in run(capfd, "verify", str(state))
    out = run(capfd, "verify", str(state), "--expect", f"5:{kept['last_hash']}", code=ExitCode.LOG_DAMAGED)
    assert "line 5 is expected: removed" in out


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ((), [1, 2, 3, 4, 5]),
        (("--user", "alice"), [2, 4, 5]),
        (("--user", ALICE["id"]), [2, 4, 5]),
        (("--user", "bob"), [3, 4]),
        (("--user", "carol"), []),
        (("--user", "dave"), [5]),
        (("--user", "eve"), [5]),
        (("--job", JOB.upper()), [3, 4]),
        (("--event", "job-ended"), [4]),
        (("--event", "decision", "--user", "bob"), [3]),
        (("--verdict", "deny"), [5]),
        (("--verdict", "permit"), []),
        (("--since", "2026-11-24T12:00:00.000001Z"), [3, 4, 5]),
        (("--since", "2026-11-25T12:00:00+02:00", "--user", "alice"), []),
        (("--since", "2026-11-20", "--user", "alice", "--job", JOB), [4]),
    ],
)
def test_what_is_asked_for_is_shown(
    state: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], numbers: list[int]
) -> None:
    assert shown(capfd, state, *options) == numbers


def test_a_line_for_people_stays_one_line_and_commands_no_terminal(
    state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = run(capfd, "show", str(state)).splitlines()
    assert lines[1].endswith('decision  user=alice right=spawn args=["a b", "c"]')
    assert lines[-1].endswith(
        r'decision deny impersonate  user=alice other_user=dave with=eve note="\u001b[31mred\nline \u00fc"'
    )


def test_json_is_the_lines_as_they_are(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = sorted((state / "audit").glob("*.jsonl"))
    assert run(capfd, "show", str(state), "--output", "json") == "".join(file.read_text() for file in files)


def test_lines_that_are_none_are_left_out_and_told(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open(state / "audit" / file_name(4), "ab") as file:
        file.write(b'nonsense\n[1]\n{"time": 3}\n\xff\n{"seq":6')
    assert main_with(["audit", "show", str(state)]) == ExitCode.LOG_DAMAGED
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 5
    assert err == "workerctl: 4 lines are none of an audit trail and left out: `workerctl audit verify` tells more\n"


@pytest.mark.parametrize(
    ("arguments", "told", "code"),
    [
        (("verify", "{state}/none"), "there is no audit trail in {state}/none", ExitCode.FAILED),
        (("show", "{state}/none"), "there is no audit trail in {state}/none", ExitCode.FAILED),
        (("verify", "{state}", "--expect", "5"), "--expect '5' is no head: give SEQ:HASH", ExitCode.USAGE),
        (("verify", "{state}", "--expect", "5:" + "g" * 64), "is no head: give SEQ:HASH", ExitCode.USAGE),
        (("verify", "{state}", "--from-seq", "9"), "there is no line 9 in this trail: give one from", ExitCode.USAGE),
        (("show", "{state}", "--job", "soon"), "--job 'soon' is no job's id: give the whole id", ExitCode.USAGE),
        (("show", "{state}", "--since", "soon"), "--since 'soon' is no time: give for instance", ExitCode.USAGE),
    ],
)
def test_what_cannot_be_is_one_line(
    state: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str, code: ExitCode
) -> None:
    assert main_with(["audit", *(each.format(state=state) for each in arguments)]) == code
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and told.format(state=state) in err


def test_without_a_folder_it_is_the_users_own_daemons(
    state: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parent))
    state.rename(state.with_name("workerd"))
    assert "whole" in run(capfd, "verify")
    assert len(run(capfd, "show").splitlines()) == 5


@pytest.mark.parametrize(("on_a_terminal", "is_told"), [(True, True), (False, False)])
def test_a_long_verification_tells_a_terminal_how_far_it_is(tmp_path: Path, on_a_terminal: bool, is_told: bool) -> None:
    write_trail(tmp_path / "audit", make_trail([9000, 9000]))
    code = (
        "import sys, workerctl.progress as progress; progress._PATIENCE_SECONDS = 0; progress._PERIOD_SECONDS = 0;"
        "from workerctl.app import main_with; sys.exit(main_with(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "audit", "verify", str(tmp_path)]
    ours, theirs = pty.openpty() if on_a_terminal else os.pipe()
    try:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=False)
        os.write(theirs, b".")
        said = b""
        while not said.endswith(b"."):  # a terminal passes on in pieces what was written
            said += os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (result.returncode, b"whole" in result.stdout) == (0, True)
    assert (b"\rverifying: " in said and said.endswith(b"\r\x1b[K.")) == is_told
    assert is_told or said == b"."
