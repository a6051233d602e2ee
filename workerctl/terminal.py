"""Printing text. Every line that is not a job's output goes through here, so that none of it acts on the terminal.

Names, messages and paths come from daemons, certificates and other users. Control characters in them could move the
cursor, set the terminal's title or answer for the user (ECMA-48); a newline could forge a line of ours, and a
bidirectional override could reverse one (Unicode TR #36, section 2.5).
"""

import contextlib
import os
import sys
from collections.abc import Iterable

from workerctl.writer import write_all

_MOST_WAITING = 1 << 16  # characters, of lines that are printed together


def escape(text: str) -> str:
    r"""Write every character that is not printable as an escape sequence of Python, such as `\x1b` or `\n`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_line(line: str) -> None:
    """Print a line to standard output at once.

    Raises:
        BrokenPipeError: nobody reads it.
        OSError: it cannot be written, for another reason.
    """
    print_lines([line])


def print_lines(lines: Iterable[str]) -> None:
    """Print any number of lines, many at a time.

    Raises:
        BrokenPipeError, OSError: as `print_line`.
    """
    waiting: list[str] = []
    waiting_characters = 0
    for line in lines:
        waiting.append(escape(line))
        waiting_characters += len(waiting[-1])
        if waiting_characters > _MOST_WAITING:
            _print(waiting)
            waiting, waiting_characters = [], 0
    _print(waiting)


def warn(sentence: str) -> None:
    """Print a line to standard error. If it cannot be written, it is lost and nothing else is."""
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    with contextlib.suppress(OSError):
        os.write(2, f"workerctl: {escape(sentence)}\n".encode(encoding, "backslashreplace"))


def show_status(text: str) -> None:
    """Replace the last line of the terminal on standard error; an empty text clears it."""
    with contextlib.suppress(OSError):
        os.write(2, f"\r{escape(text)}\x1b[K".encode())  # ECMA-48, EL: what was longer there goes


def _print(lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    write_all(1, text.encode(sys.stdout.encoding if sys.stdout else "utf-8", "backslashreplace"))
