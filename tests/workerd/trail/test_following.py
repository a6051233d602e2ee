"""Telling witnesses the heads of a trail: the system's journal, a file, and one that does not answer."""

import asyncio
import json
import os
import re
import socket
import struct
import threading
from pathlib import Path

import pytest
import structlog.testing

from audit.chain import Head
from audit.verification import verify
from workerd.trail import following
from workerd.trail.following import keeping_heads
from workerd.trail.remembered import RememberedHead
from workerd.trail.witness import FileWitness, JournalWitness
from workerd.trail.writer import AuditTrail

HEAD = Head(501, "a" * 64)
SOON_SECONDS = 10


def read_fields(datagram: bytes) -> dict[str, str]:
    """Read what the journal reads (systemd.io/JOURNAL_NATIVE_PROTOCOL): a name, a length, that many bytes."""
    fields = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        (length,) = struct.unpack("<Q", rest[:8])
        fields[name.decode()] = rest[8 : 8 + length].decode()
        assert rest[8 + length : 9 + length] == b"\n"
        datagram = rest[9 + length :]
    return fields


@pytest.fixture
def journal(tmp_path: Path) -> socket.socket:
    """A socket in the place of the journal's."""
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    journal.bind(str(tmp_path / "socket"))
    journal.settimeout(SOON_SECONDS)
    return journal


def test_the_journal_is_told_a_head_with_the_trail_that_it_is_of(tmp_path: Path, journal: socket.socket) -> None:
    with journal:
        JournalWitness(tmp_path / "odd\nname", tmp_path / "socket").keep(HEAD)
        assert read_fields(journal.recv(4096)) == {
            "MESSAGE": f"audit head 501:{HEAD.hash}",
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "workerd",
            "WORKERD_AUDIT_HEAD": f"501:{HEAD.hash}",
            "WORKERD_AUDIT_DIRECTORY": f"{tmp_path}/odd\nname",
        }


def test_a_journal_that_takes_nothing_is_an_error_at_once(tmp_path: Path, journal: socket.socket) -> None:
    witness = JournalWitness(tmp_path, tmp_path / "socket")

    def tell_often() -> None:
        for _ in range(100_000):
            witness.keep(HEAD)

    with journal, pytest.raises(BlockingIOError):
        tell_often()
    with pytest.raises(ConnectionRefusedError):
        witness.keep(HEAD)


def test_a_file_has_a_line_for_each_head_and_may_be_rotated(tmp_path: Path) -> None:
    witness = FileWitness(tmp_path / "heads")
    witness.keep(HEAD)
    (tmp_path / "heads").rename(tmp_path / "heads.1")
    witness.keep(Head(502, "b" * 64))
    witness.keep(Head(503, "c" * 64))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 501:a{64}\n", (tmp_path / "heads.1").read_text())
    assert [line.split()[1][:4] for line in (tmp_path / "heads").read_text().splitlines()] == ["502:", "503:"]


def test_a_link_and_a_fifo_that_nobody_reads_are_errors(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(OSError, match=name):
            FileWitness(tmp_path / name).keep(HEAD)
    assert not (tmp_path / "target").exists()


def text_of(folder: Path) -> str:
    [path] = folder.glob("*.jsonl")
    return path.read_text()


async def wait_for_line(path: Path, count: int) -> None:
    """Wait until a file has so many lines."""
    async with asyncio.timeout(SOON_SECONDS):
        while not path.exists() or len(path.read_text().splitlines()) < count:
            await asyncio.sleep(0.01)


async def test_heads_are_kept_in_both_places_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_WITNESS_SECONDS", 0.1)
    monkeypatch.setattr(following, "_FIRST_SECONDS", 0.1)
    remembered, folder, heads = RememberedHead(tmp_path / "audit-head"), tmp_path / "audit", tmp_path / "heads"
    with AuditTrail(folder, 0, remembered) as trail:
        async with keeping_heads(folder, remembered, str(heads)):
            for _ in range(100):
                trail.record({"event": "decision"})
            await wait_for_line(heads, 1)
            async with asyncio.timeout(SOON_SECONDS):
                while remembered.read() is None:
                    await asyncio.sleep(0.01)
            for _ in range(100):
                trail.record({"event": "decision"})
            await wait_for_line(heads, 2)
            assert remembered.read() == Head(100, json.loads(text_of(folder).splitlines()[99])["hash"])
        head = verify(folder).head
        assert head.seq == 200
        assert remembered.read() == head
        told = heads.read_text().splitlines()
        assert told[-1].endswith(f" 200:{head.hash}")
        assert 2 <= len(told) <= 4


async def test_a_witness_that_is_not_there_is_one_warning_and_told_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_WITNESS_SECONDS", 0.05)
    monkeypatch.setattr(following, "_FIRST_SECONDS", 0.05)
    remembered, folder, place = RememberedHead(tmp_path / "audit-head"), tmp_path / "audit", tmp_path / "mounted"
    with AuditTrail(folder, 0) as trail, structlog.testing.capture_logs() as logs:
        async with keeping_heads(folder, remembered, str(place / "heads")):
            trail.record({"event": "decision"})
            async with asyncio.timeout(SOON_SECONDS):
                while not logs:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            place.mkdir()
            await wait_for_line(place / "heads", 1)
    assert [each["event"] for each in logs] == [
        "the audit trail's head is not witnessed",
        "the audit trail's head is witnessed again",
    ]
    assert f"{place}/heads" in logs[0]["error"]


async def test_a_witness_that_does_not_answer_holds_up_neither_the_loop_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {
        "_FIRST_SECONDS": 0.05,
        "_WITNESS_SECONDS": 0.05,
        "_ANSWER_SECONDS": 0.5,
        "_LAST_SECONDS": 0.5,
    }.items():
        monkeypatch.setattr(following, name, seconds)
    asked, answer = threading.Event(), threading.Event()

    class Stuck:
        def keep(self, _: Head) -> None:
            asked.set()
            answer.wait(SOON_SECONDS * 3)

    monkeypatch.setattr(following, "make_witness", lambda *_: Stuck())
    remembered, folder = RememberedHead(tmp_path / "audit-head"), tmp_path / "audit"
    loop = asyncio.get_running_loop()
    with AuditTrail(folder, 0) as trail, structlog.testing.capture_logs() as logs:
        try:
            async with keeping_heads(folder, remembered, "stuck"):
                trail.record({"event": "decision"})
                while not asked.is_set():
                    await asyncio.sleep(0.01)
                longest, last = 0.0, loop.time()
                while not logs:
                    await asyncio.sleep(0.01)
                    longest, last = max(longest, loop.time() - last), loop.time()
                ended_at = loop.time()
            assert loop.time() - ended_at < SOON_SECONDS / 2
        finally:
            answer.set()
    assert longest < 0.4
    assert remembered.read() == verify(folder).head
    assert logs[0]["event"] == "the audit trail's head is not witnessed"
