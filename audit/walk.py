"""One reading of a trail's files, line by line, in bounded memory."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NoReturn

from audit.chain import (
    GENESIS,
    MAX_LINE_BYTES,
    RELEASED,
    RESUMED,
    Head,
    LineInvalid,
    Link,
    is_numbered,
    opens_line,
    parse_head,
    read_line,
    read_released,
    read_resumed,
)
from audit.files import HEAD, TrailFile
from audit.report import Fault, LineNotKept, Report

_LINES_PER_REPORT = 4096

Progress = Callable[[int, int], None]
"""Told how many bytes have been read, and how many there are."""


class _Broken(Exception):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class Walk:
    """Reads what the files have when it is made; what is added later is left for another time.

    Args: as `audit.verification.verify` has them, and the files in order.
    """

    def __init__(
        self,
        folder: Path,
        files: list[TrailFile],
        expected: Head | None,
        witnessed: Collection[Head],
        from_seq: int,
        progress: Progress,
    ) -> None:
        self._folder = folder
        self._told = _read_head(folder)
        earlier = [file for file in files if file.first_seq <= from_seq]
        self._files = files[max(0, len(earlier) - 1) :]
        self._sizes = [(folder / file.name).stat().st_size for file in self._files]
        self._expected, self._from_seq, self._progress = expected, from_seq, progress
        self._witnessed: dict[int, set[Head]] = {}
        for head in witnessed:
            self._witnessed.setdefault(head.seq, set()).add(head)
        self._met_witnessed = 0
        self._file_number = 0
        self._place = self._end = (HEAD, 1)
        self._done_bytes = 0
        self._first: Link | None = None
        self._head = GENESIS
        self._released: list[Head] = []
        self._met = {GENESIS}
        self._unfinished_bytes = 0

    def go(self) -> Report:
        """Read everything, or up to the first fault."""
        fault = None
        try:
            for number in range(len(self._files)):
                self._read(number)
            if self._from_seq and self._first is None:
                first = self._files[0].first_seq if self._files else 0
                raise LineNotKept(self._from_seq, first, self._told.seq if self._told else first)
            self._check_head()
            self._check_beginning()
            self._check_expected()
            self._check_witnessed()
        except _Broken as broken:
            fault = broken.fault
        first_seq = 0 if self._first is None else self._first.seq
        return Report(first_seq, self._head, self._unfinished_bytes, fault, self._met_witnessed)

    def _read(self, file_number: int) -> None:
        self._file_number = file_number
        file = self._files[file_number]
        is_last = file_number == len(self._files) - 1
        number = 0
        for number, line in enumerate(_lines(self._folder / file.name, self._sizes[file_number]), 1):
            self._place = (file.name, number)
            if is_last and not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                self._check_unfinished(line)
            elif self._is_meant(line):
                self._check(line, file)
            self._done_bytes += len(line)
            if number % _LINES_PER_REPORT == 0:
                self._progress(self._done_bytes, sum(self._sizes))
        self._place = self._end = (file.name, number if self._unfinished_bytes else number + 1)
        if not is_last and self._first is not None:
            self._check_number(max(self._files[file_number + 1].first_seq, self._head.seq + 1), self._head.seq + 1)
        if number == 0 and not (is_last and file.first_seq == self._wanted(file)):
            self._fail(file.first_seq, "the file is empty: its lines were removed")

    def _is_meant(self, line: bytes) -> bool:
        return self._first is not None or not self._from_seq or is_numbered(line, self._from_seq)

    def _wanted(self, file: TrailFile) -> int:
        """Tell which number the next line should have."""
        return file.first_seq if self._first is None else self._head.seq + 1

    def _check(self, line: bytes, file: TrailFile) -> None:
        wanted = self._from_seq if self._first is None and self._from_seq else self._wanted(file)
        try:
            link = read_line(line)
        except LineInvalid as error:
            self._fail(wanted, f"the line was changed: {error}")
        self._check_number(link.seq, wanted)
        if self._first is None:
            self._first = link
        elif link.prev != self._head.hash:
            self._fail(link.seq, "the line does not follow the one before it: one of the two was replaced")
        if self._place[1] == 1 and file.first_seq != link.seq:
            self._fail(link.seq, "the file does not have the name of its first line: it was renamed")
        self._head = link.head
        for head in (self._told, self._expected):
            if head is not None and head.seq == link.seq:
                self._met.add(head)
                if head != link.head:
                    whose = "that the file `head` names" if head is self._told else "that is expected"
                    self._fail(link.seq, f"it is not the line {whose}: one of the two was changed")
        if (heads := self._witnessed.get(link.seq)) is not None:
            if heads != {link.head}:
                self._fail(link.seq, "it is not the line that the witness has: one of the two was changed")
            self._met_witnessed += 1
        if link.event == RELEASED:
            self._note_released(link, line)
        elif link.event == RESUMED and link.seq != self._from_seq and not self._follows(link, line):
            self._fail(link.seq, "lines before this one had been removed or changed: the daemon found that and says so")

    def _follows(self, link: Link, line: bytes) -> bool:
        """Return whether the line that one with the event `RESUMED` names is here: it was restored from a copy."""
        try:
            return link is not self._first and read_resumed(line) == Head(link.seq - 1, link.prev)
        except LineInvalid as error:
            self._fail(link.seq, str(error))

    def _check_number(self, seq: int, wanted: int) -> None:
        if seq > wanted and self._comes_later(wanted):
            self._fail(seq, f"the line was moved: line {wanted} should be here, and comes later")
        if seq > wanted:
            missing = f"line {wanted} was" if seq == wanted + 1 else f"lines {wanted} to {seq - 1} were"
            self._fail(wanted, f"{missing} removed: line {seq} follows")
        if seq < wanted:
            self._fail(seq, f"the line was added, or moved: line {wanted} should be here")

    def _note_released(self, link: Link, line: bytes) -> None:
        try:
            self._released.append(read_released(line))
        except LineInvalid as error:
            self._fail(link.seq, str(error))

    def _check_unfinished(self, piece: bytes) -> None:
        seq = self._wanted(self._files[-1])
        if not opens_line(piece, seq):
            self._fail(seq, "what is here is no line: it was added, or the line was changed")
        self._unfinished_bytes = len(piece)

    def _check_head(self) -> None:
        last = self._head.seq
        if self._told is not None and self._told.seq > last:
            self._fail(last + 1, f"the trail ends here, and the file `head` names line {self._told.seq}: removed")
        now = _read_head(self._folder)  # further than before, if the trail grows
        self._place = (HEAD, 1)
        if self._told is None or now is None:
            self._fail(last, "the file was changed or removed")
        if now.seq < last - 1:
            self._fail(last, f"it names line {now.seq}: it was changed, or lines were added at the end")
        if self._told not in self._met and not self._from_seq:
            self._fail(last, "it names a line that is not there")

    def _check_beginning(self) -> None:
        if self._first is None or self._from_seq:
            return
        before = Head(self._first.seq - 1, self._first.prev)
        if before not in (GENESIS, *self._released):
            self._place = (self._files[0].name, 1)
            self._fail(self._first.seq, "the lines before this one were removed, and the trail does not say so")

    def _check_expected(self) -> None:
        expected, last = self._expected, self._head.seq
        if expected is None or expected in self._met or expected in self._released:
            return
        if expected.seq > last:
            self._place = self._end
            self._fail(last + 1, f"the trail ends with line {last}, and line {expected.seq} is expected: removed")
        raise LineNotKept(expected.seq, 0 if self._first is None else self._first.seq, last)

    def _check_witnessed(self) -> None:
        last = self._head.seq
        if missing := [seq for seq in self._witnessed if seq > last]:
            self._place = self._end
            self._fail(last + 1, f"the trail ends with line {last}, and the witness has line {min(missing)}: removed")

    def _comes_later(self, seq: int) -> bool:
        """Look whether a line is further on."""
        for later in range(self._file_number, len(self._files)):
            skipped = self._place[1] if later == self._file_number else 0
            lines = _lines(self._folder / self._files[later].name, self._sizes[later])
            if any(is_numbered(line, seq) for number, line in enumerate(lines, 1) if number > skipped):
                return True
        return False

    def _fail(self, seq: int, problem: str) -> NoReturn:
        file, line = self._place
        raise _Broken(Fault(file, line, seq, problem))


def _read_head(folder: Path) -> Head | None:
    try:
        return parse_head((folder / HEAD).read_bytes())
    except FileNotFoundError:
        return None


def _lines(path: Path, size: int) -> Iterator[bytes]:
    """Read the lines of a file up to a size; one that is longer than any may be comes in pieces."""
    with open(path, "rb", buffering=1 << 18) as file:
        while size > 0 and (line := file.readline(min(size, MAX_LINE_BYTES + 1))):
            size -= len(line)
            yield line
