"""What is printed does nothing to the terminal, whoever it comes from. A job's output alone is as it is."""

import ast
import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints

import betterproto2
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server
from worker_api.worker.v1 import (
    Exited,
    ExplainDecisionRequest,
    ExplainDecisionResponse,
    Job,
    JobEnd,
    JobState,
    ListRequest,
    ListResponse,
    RemoveRequest,
    RemoveResponse,
    Share,
    ShareRequest,
    ShareResponse,
    SpawnRequest,
    SpawnResponse,
    StatusRequest,
    StatusResponse,
    StopRequest,
    StopResponse,
    User,
    WhoAmIRequest,
    WhoAmIResponse,
    WorkerServiceBase,
)

from audit.files import file_name
from pki.authority import issue_client
from pki.files import load_pair, write_pair
from pki.store import PkiFolder
from pki.tls import server_context
from tests.commands import run_workerctl
from workerctl.app import main_with
from workerctl.terminal import escape, print_lines, show_status, warn

ROOT = Path(__file__).parents[2]
USER_ID = "123e4567-e89b-42d3-a456-426614174000"
EVIL = "evil\x1b]0;owned\x07\r\nworkerctl: forged\x9b2J\u202e\u2028end"
USER = User(id=EVIL, name=EVIL)
PRINTS = {  # the files that may use what prints, and what they may use
    "workerctl/terminal.py": {"os.write", "sys.stdout", "sys.stderr", "write_all"},
    "workerctl/writer.py": {"os.write", "write_all"},  # a job's output
    "workerctl/__main__.py": {"sys.stdout", "sys.stderr"},  # flushes them
}
NAMES = {"print", "write_all", "Console", "FileIO"}
ATTRIBUTES = {
    "os": {"write", "writev", "pwrite", "fdopen", "sendfile", "system"},
    "sys": {"stdout", "stderr", "__stdout__", "__stderr__", "displayhook"},
    "warnings": {"warn"},
    "logging": {"basicConfig", "getLogger"},
}


def printing(source: str) -> Iterator[str]:
    """Name everything in a module that prints, or could."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.alias(name=name) if name in NAMES:
                yield name
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in ATTRIBUTES.get(module, ()):
                yield f"{module}.{name}"
            case ast.ImportFrom(module=str(module), names=aliases):
                yield from (f"{module}.{each.name}" for each in aliases if each.name in ATTRIBUTES.get(module, ()))
            case ast.Call(func=ast.Name(id="open"), args=[ast.Constant(value=1 | 2 | "/dev/tty" | "/dev/stdout"), *_]):
                yield "open"


def test_every_print_goes_through_one_place() -> None:
    found = {
        str(path.relative_to(ROOT)): set(printing(path.read_text()))
        for package in ("workerctl", "pki", "audit")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {file: names for file, names in found.items() if names} == PRINTS


@pytest.mark.parametrize(
    "source",
    [
        "print(1)",
        "import os\nos.write(1, b'')",
        "from os import write as w\nw(1, b'')",
        "import sys\nsys.stdout.write('')",
        "from sys import stderr",
        "from workerctl.writer import write_all as w",
        "from rich.console import Console",
        "open(1, 'w')",
    ],
)
def test_a_print_that_goes_elsewhere_is_found(source: str) -> None:
    assert list(printing(source))


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain ü — 漢", "plain ü — 漢"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[2J\x9b2J\x7f\x00", r"\x1b[2J\x9b2J\x7f\x00"),
        ("\u202eabc\u2066\u200b\u2028", r"\u202eabc\u2066\u200b\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_is_not_printable_is_escaped_wherever_it_is_printed(
    capfd: pytest.CaptureFixture[str], text: str, printed: str
) -> None:
    print_lines([text])
    warn(text)
    show_status(text)
    out, err = capfd.readouterr()
    assert escape(text) == printed
    assert out == f"{printed}\n"
    assert err == f"workerctl: {printed}\n\r{printed}\x1b[K"


def fill(message: type[betterproto2.Message], **known: Any) -> Any:
    """Make a message in which every text is hostile."""
    texts = {name: EVIL for name, hint in get_type_hints(message).items() if hint is str}
    return message(**{**texts, **known})


class Hostile(WorkerServiceBase):
    """A daemon whose every text is hostile."""

    job = fill(
        Job,
        args=[EVIL],
        envs={EVIL: EVIL},
        owner=USER,
        spawned_by=USER,
        state=JobState.ENDED,
        created_at=datetime.now(UTC),
        end=JobEnd(exited=Exited(code=0), ended_at=datetime.now(UTC)),
    )

    async def spawn(self, message: SpawnRequest) -> SpawnResponse:
        if message.program == "refused":
            raise GRPCError(Status.INVALID_ARGUMENT, EVIL)
        return SpawnResponse(job_id=EVIL)

    async def stop(self, message: StopRequest) -> StopResponse:  # noqa: ARG002
        return StopResponse(job=self.job)

    async def status(self, message: StatusRequest) -> StatusResponse:  # noqa: ARG002
        return StatusResponse(job=self.job)

    async def remove(self, message: RemoveRequest) -> RemoveResponse:  # noqa: ARG002
        raise GRPCError(Status.NOT_FOUND, EVIL)

    async def list(self, message: ListRequest) -> ListResponse:  # noqa: ARG002
        return ListResponse(jobs=[self.job, dataclasses.replace(self.job, state=JobState.DAMAGED, end=None)])

    async def share(self, message: ShareRequest) -> ShareResponse:  # noqa: ARG002
        return ShareResponse(shares=[Share(user=USER, rights=[EVIL])])

    async def explain_decision(self, message: ExplainDecisionRequest) -> ExplainDecisionResponse:  # noqa: ARG002
        return ExplainDecisionResponse(permitted=True, user=USER, roles=[EVIL], policies=[EVIL])

    async def who_am_i(self, message: WhoAmIRequest) -> WhoAmIResponse:  # noqa: ARG002
        soon = datetime.now(UTC) + timedelta(days=1)
        return fill(  # type: ignore[no-any-return]
            WhoAmIResponse, user=USER, acting=USER, roles=[EVIL], rights=[EVIL], certificate_expires_at=soon
        )


@pytest.fixture
async def hostile(tmp_path: Path) -> AsyncIterator[tuple[str, ...]]:
    """A hostile daemon, and the options of workerctl that lead to it."""
    pki = PkiFolder(tmp_path / "pki")
    pki.initialize(users=["alice"])
    server = Server([Hostile()])
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        await server.start(sock=listening, ssl=server_context(pki))
        endpoint = f"https://localhost:{listening.getsockname()[1]}"
        yield "--endpoint", endpoint, "--pki-dir", str(pki.path)
        server.close()
        await server.wait_closed()


def assert_harmless(printed: bytes, lines: int | None = None) -> None:
    """See that a text has nothing but printable characters in its lines, none of which is forged."""
    text = printed.decode()
    assert text.replace("\n", "").isprintable()
    assert "evil" in text
    assert not any(line.startswith("workerctl: forged") for line in text.splitlines())
    if lines is not None:
        assert text.count("\n") == lines


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("status a --show-envs", None),
        ("status a --output json", 1),
        ("stop a", None),
        ("list --all-owners", 3),
        ("list --output json", 2),
        ("share a", 2),
        ("policy test --action stop", 3),
        ("whoami", None),
        ("spawn true", 1),
        ("spawn refused", 1),
        ("run --detach true", 1),
        ("remove a", 1),
    ],
)
async def test_a_hostile_daemon_s_texts_are_printed_harmlessly(
    hostile: tuple[str, ...], arguments: str, lines: int | None
) -> None:
    result = await asyncio.to_thread(run_workerctl, *hostile, *arguments.split())
    assert_harmless(result.stdout + result.stderr, lines)
    if "json" in arguments:
        assert [json.loads(line)["name"] for line in result.stdout.splitlines()] == [EVIL] * result.stdout.count(b"\n")


@pytest.mark.parametrize("arguments", [("list",), ("show", "alice"), ("list", "--output", "json")], ids=" ".join)
def test_a_hostile_certificate_is_shown_harmlessly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    pki = PkiFolder(tmp_path / "pki")
    pki.initialize()
    write_pair(pki.client_certificate("alice"), issue_client(load_pair(pki.client_ca), EVIL, USER_ID))
    assert main_with(["--pki-dir", str(pki.path), "pki", *arguments]) == 0
    assert_harmless(capfd.readouterr().out.encode())


def test_a_hostile_line_of_an_audit_trail_is_shown_harmlessly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    event = {"time": "2026-11-24T10:00:00+00:00", "seq": 1, "event": "evil", "note": "\x9b2J\u202e"}
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / file_name(1)).write_text(json.dumps(event, ensure_ascii=False) + "\n")
    printed: list[str] = []
    for output in ("text", "json"):
        assert main_with(["audit", "show", str(tmp_path), "--output", output]) == 0
        printed.append(capfd.readouterr().out)
        assert_harmless(printed[-1].encode(), 1)
    assert json.loads(printed[-1]) == event
