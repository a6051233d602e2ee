"""Trails for tests, as bytes: made without the daemon's writer, and written where they can be verified."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audit.chain import GENESIS, RELEASED, format_head, make_line
from audit.files import HEAD, file_name

TIME = "2026-11-25T21:43:37.123456+00:00"
Files = dict[str, bytes]
"""The content of a trail's folder, by name."""


def make_trail(lengths: Sequence[int], released_files: int = 0) -> Files:
    """Make a trail.

    Args:
        lengths: how many lines each of its files has; at least one.
        released_files: how many of the first are not there any more. The last line says so.
    """
    files: Files = {}
    head, name = GENESIS, ""
    ends = []
    for length in lengths:
        name = file_name(head.seq + 1)
        files[name] = b""
        for number in range(length):
            line, head = make_line({"event": "decision", "n": number, "user": {"name": "Zoë"}}, head, TIME)
            files[name] += line
        ends.append(head)
    if released_files:
        last = ends[released_files - 1]
        released: dict[str, Any] = {"event": RELEASED, "last": {"seq": last.seq, "hash": last.hash}}
        line, head = make_line(released, head, TIME)
        files[name] += line
        for gone in sorted(files)[:released_files]:
            del files[gone]
    files[HEAD] = format_head(head)
    return files


def write_trail(folder: Path, files: Files) -> Path:
    """Write a trail into a folder that has none."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def lines_of(files: Files) -> list[bytes]:
    """All lines, in order."""
    return [line for name in sorted(files) if name != HEAD for line in files[name].splitlines(keepends=True)]
