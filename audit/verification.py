"""Verification: reading a trail from its first line to its last, and naming the first that is not as it was written.

Whoever may write all files of a trail can make a whole new one that is in order. Against that helps a head that is kept
elsewhere: `verify` takes it as `expected`.

A trail may grow while it is read, and nobody waits for that. The head is read first, so the lines must go at least that
far, and once more at the end: a writer's head is never more than one line behind its lines.
"""

from collections.abc import Collection
from pathlib import Path

from audit.chain import Head
from audit.files import HEAD, TrailFile, list_files
from audit.report import Report, TrailMissing
from audit.walk import Progress, Walk


def _nobody_asks(done: int, total: int) -> None:
    pass


def verify(
    folder: Path,
    *,
    expected: Head | None = None,
    witnessed: Collection[Head] = (),
    from_seq: int = 0,
    progress: Progress = _nobody_asks,
) -> Report:
    """Verify a trail.

    Args:
        folder: the folder with the trail's files.
        expected: a head that was kept elsewhere: the trail must have this very line.
        witnessed: heads that were kept elsewhere: the trail must have those lines, unless they were released.
        from_seq: the line to begin at, and nothing is said of what is before it; zero for the beginning.
        progress: told now and then how many bytes have been read, and of how many.

    Raises:
        TrailMissing: there is none.
        LineNotKept: the line of `expected` or `from_seq` was released, or is yet to come.
        OSError: a file cannot be read.
    """
    while True:
        files = _list(folder)
        try:
            report = Walk(folder, files, expected, witnessed, from_seq, progress).go()
        except FileNotFoundError:  # it was released meanwhile
            if _list(folder) == files:
                raise
            continue
        # The names in a folder are not read at one stroke: a file that was just being added may have been left out.
        if report.fault is None or _list(folder) == files:
            return report


def _list(folder: Path) -> list[TrailFile]:
    try:
        files = list_files(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise TrailMissing(folder) from None
    if not files and not (folder / HEAD).exists():
        raise TrailMissing(folder)
    return files
