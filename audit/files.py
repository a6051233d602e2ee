"""The files of a trail: their names, and how their end is read.

A trail is a folder with the file `head`, which holds number and hash of the last line, and the lines themselves in
`audit-N.jsonl`, where N is the number of the file's first line.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from audit.chain import MAX_LINE_BYTES

HEAD = "head"
REMEMBERED = "audit-head"
"""The file beside a daemon's trail with a head that the trail must have, in the form of the file `head`."""
_NAME = re.compile(r"audit-([0-9]{12,19})\.jsonl")
_FEW_BYTES = 1 << 12  # enough for nearly every line


@dataclass(frozen=True, slots=True)
class TrailFile:
    """One file of a trail: its name, and the number of its first line."""

    name: str
    first_seq: int


def file_name(first_seq: int) -> str:
    """Name the file that begins with a line."""
    return f"audit-{first_seq:012}.jsonl"


def list_files(folder: Path | int) -> list[TrailFile]:
    """List the files of a trail in order.

    Args:
        folder: a path, or a descriptor.

    Raises:
        OSError: the folder cannot be read.
    """
    found = [TrailFile(match[0], int(match[1])) for name in os.listdir(folder) if (match := _NAME.fullmatch(name))]
    return sorted(found, key=lambda file: file.first_seq)


def read_end(descriptor: int, size: int) -> tuple[bytes, int]:
    """Read the last whole line of a file.

    Args:
        size: where the file is taken to end.

    Returns:
        The line with its newline, empty when there is none, or none of a length that a line may have; and how many
        bytes there are after it, which somebody has not finished to write.
    """
    line, unfinished_bytes = _find_end(descriptor, size, _FEW_BYTES)
    return (line, unfinished_bytes) if line else _find_end(descriptor, size, 2 * MAX_LINE_BYTES)


def _find_end(descriptor: int, size: int, length: int) -> tuple[bytes, int]:
    """Do the same within the last bytes of a file."""
    start = max(0, size - length)
    data = os.pread(descriptor, size - start, start)
    end = data.rfind(b"\n") + 1
    begin = data.rfind(b"\n", 0, max(0, end - 1)) + 1
    return (data[begin:end] if begin or start == 0 else b""), len(data) - end
