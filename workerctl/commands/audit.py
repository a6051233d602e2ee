"""audit: read a daemon's audit trail, and verify that it is whole. Of files on this machine; no daemon is asked."""

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from audit.chain import OWN_FIELDS, Head, parse_head
from audit.files import REMEMBERED, list_files
from audit.report import AuditError, LineNotKept, Report, TrailMissing
from audit.verification import verify as verify_trail
from workerctl.errors import ClientError, UsageInvalid
from workerctl.exit_codes import ExitCode
from workerctl.output import format_lines, format_time
from workerctl.own_daemon import state_directory
from workerctl.parameters import Output
from workerctl.progress import Progress
from workerctl.terminal import print_lines, warn

app = App(name="audit", help="Read the audit trail of a daemon on this machine, and verify that it is whole.")
Directory = Annotated[
    str | None, Parameter(help="The daemon's state directory, or the trail's. [default: your own daemon's]")
]
_HEAD = re.compile(r"([0-9]{1,19}):([0-9A-Fa-f]{64})")
_WITNESSED = re.compile(r"\b([0-9]{1,19}):([0-9a-f]{64})\b")
_FIRST = ("event", "verdict", "action")
_PEOPLE = frozenset({"user", "actor", "owner", "by", "other_user", "with"})


@app.command
def verify(
    directory: Directory = None,
    /,
    *,
    expect: Annotated[str | None, Parameter(help="The head, SEQ:HASH, that an earlier verification showed.")] = None,
    witness: Annotated[str | None, Parameter(help="A file to which the daemon wrote the trail's heads.")] = None,
    from_seq: Annotated[int, Parameter(help="Begin at this line, whatever is before it.", show_default=False)] = 0,
    output: Output = "text",
) -> int:
    """Verify that no line was changed, removed, added or reordered, and show the head to keep for the next time.

    Example: `workerctl audit verify /var/lib/workerd`
    """
    expected = None if expect is None else _parse_head(expect)
    witnessed = [*_remembered(directory), *([] if witness is None else _read_witness(Path(witness)))]
    try:
        with Progress("verifying") as progress:
            report = verify_trail(
                _trail(directory), expected=expected, witnessed=witnessed, from_seq=from_seq, progress=progress
            )
    except LineNotKept as error:
        raise UsageInvalid(str(error)) from error
    except AuditError as error:
        raise ClientError(str(error)) from error
    print_lines([json.dumps(_plain(report))] if output == "json" else _describe(report))
    return ExitCode.OK if report.fault is None else ExitCode.LOG_DAMAGED


@app.command
def show(
    directory: Directory = None,
    /,
    *,
    user: Annotated[str, Parameter(help="Only what concerns this user, a name or an id.", show_default=False)] = "",
    job: Annotated[str, Parameter(help="Only what concerns this job.", show_default=False)] = "",
    event: Annotated[str, Parameter(help="Only this kind of line, as decision or job-ended.", show_default=False)] = "",
    verdict: Annotated[Literal["permit", "deny"] | None, Parameter(help="Only decisions that say this.")] = None,
    since: Annotated[str | None, Parameter(help="Only from this time on, as 2026-11-24 or 2026-11-24T18:30.")] = None,
    output: Output = "text",
) -> int:
    """Show the lines of a trail, oldest first; with JSON as they are. It verifies nothing.

    Example: `workerctl audit show --user alice --since 2026-11-24 /var/lib/workerd`
    """
    begin = None if since is None else _parse_time(since)
    job_id = _parse_job_id(job) if job else ""
    unreadable = 0

    def chosen() -> Iterator[str]:
        nonlocal unreadable
        for line in _lines(_trail(directory)):
            try:
                told = json.loads(line)
                time = datetime.fromisoformat(told["time"])
            except (ValueError, TypeError, KeyError):
                unreadable += 1
                continue
            if begin is not None and time < begin:
                continue
            wanted = {"job_id": job_id, "event": event, "verdict": verdict}
            if any(value and told.get(name) != value for name, value in wanted.items()):
                continue
            if user and not _concerns(told, user):
                continue
            yield _as_json(line.decode().rstrip("\n"), told) if output == "json" else _one_line(told, time)

    print_lines(chosen())
    if unreadable:
        are = "1 line is" if unreadable == 1 else f"{unreadable} lines are"
        warn(f"{are} none of an audit trail and left out: `workerctl audit verify` tells more")
    return ExitCode.LOG_DAMAGED if unreadable else ExitCode.OK


def _trail(directory: str | None) -> Path:
    """Find the trail of a state directory, unless it is the trail's own folder that is given."""
    given = Path(directory) if directory else state_directory()
    return given / "audit" if (given / "audit").is_dir() else given


def _remembered(directory: str | None) -> list[Head]:
    """Return the head that the daemon remembers, if the directory is its state directory."""
    path = (Path(directory) if directory else state_directory()) / REMEMBERED
    try:
        head = parse_head(path.read_bytes()) if path.is_file() else None
    except OSError:
        head = None
    if head is None and os.path.lexists(path):
        warn(f"the trail is not compared with {path}, which cannot be read")
    return [] if head is None else [head]


def _read_witness(path: Path) -> set[Head]:
    """Read the heads in a witness's file, whatever else its lines have."""
    with path.open(errors="replace") as file:
        found = {Head(int(match[1]), match[2]) for line in file for match in _WITNESSED.finditer(line)}
    if not found:
        raise UsageInvalid(f"--witness {path} has no head, SEQ:HASH: give what `workerd --audit-witness` wrote")
    return found


def _parse_head(text: str) -> Head:
    found = _HEAD.fullmatch(text)
    if found is None:
        raise UsageInvalid(f"--expect {text!r} is no head: give SEQ:HASH, as `workerctl audit verify` shows it")
    return Head(int(found[1]), found[2].lower())


def _parse_job_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise UsageInvalid(f"--job {text!r} is no job's id: give the whole id, as `workerctl list` shows it") from error


def _parse_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise UsageInvalid(f"--since {text!r} is no time: give for instance 2026-11-24T18:30 or 2026-11-24") from error


def _describe(report: Report) -> list[str]:
    lines = {
        "lines": f"{report.first} to {report.head.seq}" if report.first else "none",
        "head": f"{report.head.seq}:{report.head.hash}" if report.first else "",
        "unfinished": f"{report.unfinished_bytes} bytes at the end" if report.unfinished_bytes else "",
        "witnessed": f"{report.witnessed} lines" if report.witnessed else "",
        "state": "whole",
    }
    if (fault := report.fault) is not None:
        lines["state"] = f"damaged: {fault.file}, line {fault.line} (seq {fault.seq}): {fault.problem}"
    return format_lines(lines)


def _plain(report: Report) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "whole": report.fault is None,
        "first_seq": report.first,
        "last_seq": report.head.seq,
        "last_hash": report.head.hash,
        "unfinished_bytes": report.unfinished_bytes,
        "witnessed": report.witnessed,
    }
    if (fault := report.fault) is not None:
        plain["fault"] = {"file": fault.file, "line": fault.line, "seq": fault.seq, "problem": fault.problem}
    return plain


def _lines(folder: Path) -> Iterator[bytes]:
    try:
        files = list_files(folder)
    except (FileNotFoundError, NotADirectoryError):
        files = []
    if not files:
        raise ClientError(str(TrailMissing(folder)))
    for file in files:
        try:
            opened = open(folder / file.name, "rb")  # noqa: SIM115 closed below; only its opening may fail
        except FileNotFoundError:  # it was just released
            continue
        with opened:
            yield from (line for line in opened if line.endswith(b"\n"))  # another is just being written


def _concerns(value: Any, user: str, name: str = "") -> bool:
    """Tell whether a user is named in an event, as who did something or whom it was done to."""
    match value:
        case Mapping():
            if name in _PEOPLE and user in (value.get("id"), value.get("name")):
                return True
            return any(_concerns(each, user, str(inner)) for inner, each in value.items())
        case str():
            return name in _PEOPLE and value == user
        case _:
            return False


def _as_json(line: str, event: Mapping[str, Any]) -> str:
    """Return a line as it stands in the trail, or with escapes of JSON where it would be printed with others."""
    return line if line.isprintable() else json.dumps(event)


def _one_line(event: Mapping[str, Any], time: datetime) -> str:
    """Put an event into one line for people."""
    said = [_in_words(event[name]) for name in _FIRST if name in event]
    left_out = OWN_FIELDS.union(_FIRST, ["rpc"] if "action" in event else [])  # whose right the action is
    fields = (f"{name}={_in_words(value)}" for name, value in event.items() if name not in left_out)
    return f"{format_time(time)}  {event.get('seq')}  {' '.join(said)}  {' '.join(fields)}".rstrip()


def _in_words(value: Any) -> str:
    match value:
        case str() if value and value.isprintable() and not set(value) & set(' "='):
            return value
        case {"id": str(), "name": str(name), **others} if not others:
            return _in_words(name)
        case _:
            return json.dumps(value)
