"""What verification finds: everything that was done to a trail, and nothing where nothing was done."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.chain import GENESIS, RELEASED, RESUMED, Head, format_head, make_line, read_line
from audit.files import HEAD, file_name
from audit.report import Fault, LineNotKept, Report, TrailMissing
from audit.verification import verify
from tests.audit.trails import TIME, Files, lines_of, make_trail, write_trail

unhurried = settings(deadline=None)  # it is the disk, and others at work, that take their time
LENGTHS = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def trails(draw: st.DrawFn) -> Files:
    """A trail that is in order, with its beginning released or not."""
    lengths = draw(LENGTHS)
    return make_trail(lengths, draw(st.integers(0, len(lengths) - 1)))


@st.composite
def edits(draw: st.DrawFn) -> tuple[Files, Files]:
    """A trail, and the same after somebody did one thing to it."""
    files = draw(trails())
    edit = draw(st.sampled_from([change, insert, delete, cut_line, repeat_line, swap_lines, cut_tail, remove, rename]))
    edited = edit(draw, dict(files))
    return files, edited


def change(draw: st.DrawFn, files: Files) -> Files:
    name, place = draw_place(draw, files)
    byte = draw(st.integers(0, 255).filter(lambda byte: byte != files[name][place]))
    return files | {name: files[name][:place] + bytes([byte]) + files[name][place + 1 :]}


def insert(draw: st.DrawFn, files: Files) -> Files:
    name, place = draw_place(draw, files)
    return files | {name: files[name][:place] + draw(st.binary(min_size=1, max_size=3)) + files[name][place:]}


def delete(draw: st.DrawFn, files: Files) -> Files:
    name, place = draw_place(draw, files)
    return files | {name: files[name][:place] + files[name][place + draw(st.integers(1, 3)) :]}


def cut_line(draw: st.DrawFn, files: Files) -> Files:
    lines = lines_of(files)
    return with_lines(files, {draw(st.integers(0, len(lines) - 1)): b""})


def repeat_line(draw: st.DrawFn, files: Files) -> Files:
    """A line once more, after any other."""
    lines = lines_of(files)
    place = st.integers(0, len(lines) - 1)
    at = draw(place)
    return with_lines(files, {at: lines[at] + lines[draw(place)]})


def swap_lines(draw: st.DrawFn, files: Files) -> Files:
    """Two lines, also of different files."""
    lines = lines_of(files)
    one, other = draw(st.tuples(*[st.integers(0, len(lines) - 1)] * 2))
    return with_lines(files, {one: lines[other], other: lines[one]})


def cut_tail(draw: st.DrawFn, files: Files) -> Files:
    """The last lines, also across files."""
    lines = lines_of(files)
    return with_lines(files, dict.fromkeys(range(draw(st.integers(0, len(lines) - 1)), len(lines)), b""))


def remove(draw: st.DrawFn, files: Files) -> Files:
    del files[draw(st.sampled_from(sorted(files)))]
    return files


def rename(draw: st.DrawFn, files: Files) -> Files:
    name = draw(st.sampled_from(sorted(files)))
    files[file_name(draw(st.integers(1, 20)))] = files.pop(name)
    return files


def draw_place(draw: st.DrawFn, files: Files) -> tuple[str, int]:
    name = draw(st.sampled_from(sorted(files)))
    return name, draw(st.integers(0, len(files[name]) - 1))


def with_lines(files: Files, others: dict[int, bytes]) -> Files:
    """The same trail with other bytes in the place of some of its lines, counted over all files."""
    numbers = itertools.count()
    edited = dict(files)
    for name in sorted(files.keys() - {HEAD}):
        lines = files[name].splitlines(keepends=True)
        edited[name] = b"".join(others.get(next(numbers), line) for line in lines)
    return edited


def report_on(files: Files, expected: Head | None = None, from_seq: int = 0) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        return verify(write_trail(Path(folder) / "audit", files), expected=expected, from_seq=from_seq)


def fault_of(files: Files) -> Fault:
    fault = report_on(files).fault
    assert fault is not None
    return fault


@unhurried
@given(trails())
def test_a_trail_that_nobody_touched_is_whole(files: Files) -> None:
    lines = lines_of(files)
    first, last = read_line(lines[0]), read_line(lines[-1])
    assert report_on(files) == Report(first.seq, last.head, 0, None)
    assert report_on(files, expected=last.head).fault is None
    assert report_on(files, expected=first.head).fault is None
    assert report_on(files, from_seq=last.seq) == Report(last.seq, last.head, 0, None)


@unhurried
@given(edits())
def test_any_single_edit_is_found(both: tuple[Files, Files]) -> None:
    files, edited = both
    if edited == files:
        return
    try:
        report = report_on(edited)
    except TrailMissing:
        assert edited.keys() <= {HEAD}
        return
    assert report.fault is not None


@unhurried
@given(edits())
def test_the_first_line_that_is_not_as_it_was_is_named(both: tuple[Files, Files]) -> None:
    """Every line before it is as it was; the one that is named, or the one that should be there, is not."""
    files, edited = both
    if edited == files or not edited.keys() - {HEAD}:
        return
    report = report_on(edited)
    assert report.fault is not None
    if report.fault.file == HEAD:
        assert edited.get(HEAD) != files.get(HEAD)
        return
    before = b"".join(edited[name] for name in sorted(edited.keys() - {HEAD}) if name < report.fault.file)
    kept = before.splitlines(keepends=True)
    kept += edited[report.fault.file].splitlines(keepends=True)[: report.fault.line - 1]
    originals = lines_of(files)
    assert kept == originals[: len(kept)] or edited.keys() != files.keys()


@unhurried
@given(trails(), st.integers(1, 400))
def test_a_line_that_was_not_finished_is_no_fault_and_is_told(files: Files, length: int) -> None:
    last = read_line(lines_of(files)[-1])
    line, _ = make_line({"event": "decision"}, last.head, TIME)
    piece = line[: min(length, len(line) - 1)]
    name = max(files.keys() - {HEAD})
    assert report_on(files | {name: files[name] + piece}) == Report(
        read_line(lines_of(files)[0]).seq, last.head, len(piece), None
    )


@unhurried
@given(trails())
def test_a_head_that_is_a_line_behind_is_no_fault_and_two_are(files: Files) -> None:
    name = max(files.keys() - {HEAD})
    head = read_line(lines_of(files)[-1]).head
    line, head = make_line({"event": "decision"}, head, TIME)
    files[name] += line
    assert report_on(files).fault is None
    line, head = make_line({"event": "decision"}, head, TIME)
    files[name] += line
    assert "lines were added" in fault_of(files).problem


@pytest.mark.parametrize(
    ("others", "file", "line", "seq", "problem"),
    [
        ({2: b""}, 1, 3, 3, "line 3 was removed: line 4 follows"),
        ({2: b"", 3: b""}, 1, 3, 3, "lines 3 to 4 were removed: line 5 follows"),
        ({2: b"{}\n"}, 1, 3, 3, "the line was changed"),
        ({2: 3, 3: 2}, 1, 3, 4, "the line was moved: line 3 should be here, and comes later"),
        ({2: 5, 5: 2}, 1, 3, 6, "the line was moved: line 3 should be here, and comes later"),
        ({4: (4, 1)}, 5, 2, 2, "the line was added, or moved: line 6 should be here"),
        ({7: b""}, 5, 4, 8, "the trail ends here, and the file `head` names line 8: removed"),
        ({6: b"", 7: b""}, 5, 3, 7, "the trail ends here, and the file `head` names line 8: removed"),
        ({4: b"", 5: b"", 6: b"", 7: b""}, 5, 1, 5, "the trail ends here, and the file `head` names line 8: removed"),
        ({7: b'{"seq":8,'}, 5, 4, 8, "the trail ends here, and the file `head` names line 8: removed"),
        ({0: b""}, 1, 1, 1, "line 1 was removed: line 2 follows"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    others: dict[int, bytes | int | tuple[int, ...]], file: int, line: int, seq: int, problem: str
) -> None:
    files = make_trail([4, 4])
    lines = lines_of(files)

    def content(other: bytes | int | tuple[int, ...]) -> bytes:
        match other:
            case bytes():
                return other
            case int():
                return lines[other]
            case _:
                return b"".join(lines[each] for each in other)

    fault = fault_of(with_lines(files, {place: content(other) for place, other in others.items()}))
    assert (fault.file, fault.line, fault.seq) == (file_name(file), line, seq)
    assert fault.problem.startswith(problem)


@pytest.mark.parametrize("gone", [[0], [1], [2], [0, 1], [1, 2]])
def test_a_file_that_was_removed_is_missed(gone: Sequence[int]) -> None:
    files = make_trail([2, 2, 2])
    for number in gone:
        del files[file_name(2 * number + 1)]
    assert "removed" in fault_of(files).problem


def test_a_beginning_that_was_released_is_accepted_and_no_other() -> None:
    files = make_trail([2, 2, 2, 2], released_files=2)
    assert report_on(files).fault is None
    del files[file_name(5)]
    assert fault_of(files) == Fault(
        file_name(7), 1, 7, "the lines before this one were removed, and the trail does not say so"
    )


def test_lines_that_were_to_be_released_and_are_still_there_are_no_fault() -> None:
    """The daemon was killed between saying so and removing them."""
    released = make_trail([2, 2, 2], released_files=1)
    assert report_on(make_trail([2, 2, 2]) | released).fault is None


def test_a_line_that_says_that_the_trail_was_damaged_is_a_fault_unless_verification_begins_there() -> None:
    files = make_trail([2])
    line, head = make_line({"event": RESUMED, "head": None}, read_line(lines_of(files)[-1]).head, TIME)
    files[file_name(1)] += line
    files[HEAD] = format_head(head)
    assert fault_of(files).seq == 3
    assert report_on(files, from_seq=3) == Report(3, head, 0, None)


def test_a_whole_new_trail_is_found_by_a_head_that_was_kept_elsewhere() -> None:
    kept = read_line(lines_of(make_trail([3]))[1]).head
    forged: Files = {file_name(1): b""}
    head = GENESIS
    for number in range(3):
        line, head = make_line({"event": "decision", "n": -number}, head, TIME)
        forged[file_name(1)] += line
    forged[HEAD] = format_head(head)
    assert report_on(forged).fault is None
    fault = report_on(forged, expected=kept).fault
    assert fault is not None and fault.seq == 2 and "expected" in fault.problem


def test_a_tail_that_was_removed_with_its_head_is_found_by_a_head_that_was_kept_elsewhere() -> None:
    files = make_trail([5])
    kept = read_line(lines_of(files)[-1]).head
    fault = report_on(make_trail([3]), expected=kept).fault
    assert fault == Fault(file_name(1), 4, 4, "the trail ends with line 3, and line 5 is expected: removed")


def test_a_kept_head_whose_line_was_released_is_compared_with_what_was_released_last() -> None:
    lines = lines_of(make_trail([2, 2, 2, 2]))
    files = make_trail([2, 2, 2, 2], released_files=2)
    assert report_on(files, expected=read_line(lines[3]).head).fault is None
    with pytest.raises(LineNotKept, match="no line 3 in this trail: give one from 5 to 9"):
        report_on(files, expected=read_line(lines[2]).head)


@unhurried
@given(LENGTHS, st.data())
def test_verification_from_a_line_on_says_nothing_of_what_is_before_and_all_of_what_is_after(
    lengths: list[int], data: st.DataObject
) -> None:
    files = make_trail(lengths)
    lines = lines_of(files)
    begin = data.draw(st.integers(0, len(lines) - 1))
    spoilt = data.draw(st.integers(0, len(lines) - 1))
    line = lines[spoilt]
    middle = line.replace(b'"decision"', b'"decisiom"')
    report = report_on(with_lines(files, {spoilt: middle}), from_seq=begin + 1)
    assert (report.fault is None) == (spoilt < begin)


def test_there_is_nothing_to_begin_at_beyond_the_end() -> None:
    with pytest.raises(LineNotKept):
        report_on(make_trail([2]), from_seq=9)


def test_a_folder_without_a_trail_has_none(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(TrailMissing):
            verify(folder)


def test_a_line_without_end_takes_no_memory(tmp_path: Path) -> None:
    files = make_trail([2])
    folder = write_trail(tmp_path / "audit", files)
    with open(folder / file_name(1), "ab") as file:
        file.truncate(1 << 40)
    assert verify(folder).fault is not None


def test_a_release_that_says_nothing_is_a_fault() -> None:
    line, head = make_line({"event": RELEASED}, GENESIS, TIME)
    assert fault_of({file_name(1): line, HEAD: format_head(head)}).seq == 1


def test_progress_is_told_and_ends_at_the_whole(tmp_path: Path) -> None:
    folder = write_trail(tmp_path / "audit", make_trail([5000, 5000]))
    told: list[tuple[int, int]] = []
    verify(folder, progress=lambda done, total: told.append((done, total)))
    total = sum(path.stat().st_size for path in folder.glob("*.jsonl"))
    assert told and all(each[1] == total for each in told)
    assert [done for done, _ in told] == sorted({done for done, _ in told})
