"""A damaged catalogue is noticed, made again from the folders, and answers nothing wrong meanwhile."""

import contextlib
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.catalogs import PAGE_BYTES, Filling, damage_all, mutate, settle, write_elsewhere
from workerd.engine.catalog import Catalog, EndedJob
from workerd.engine.errors import CatalogFailed, CatalogIncomplete

_OTHER = """
import sys
from pathlib import Path
from workerd.engine.catalog import Catalog
with Catalog(Path(sys.argv[1])) as catalog:
    for command in sys.stdin:
        try:
            print(eval(command), flush=True)
        except Exception as error:
            print(type(error).__name__, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a catalogue is."""
    return tmp_path / "catalog.sqlite"


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[Callable[[str], str]]:
    """Open a catalogue in another process; yield a function that evaluates an expression there."""
    command = [sys.executable, "-c", _OTHER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        sent, got = process.stdin, process.stdout

        def evaluate(expression: str) -> str:
            sent.write(f"{expression}\n")
            sent.flush()
            while "error=" in (line := got.readline()):
                pass  # what it logs
            return line.strip()

        yield evaluate
        sent.close()
    assert process.returncode == 0


@pytest.mark.parametrize("round_number", range(4))
def test_the_check_finds_whatever_is_damaged_or_it_does_no_harm(path: Path, seed: int, round_number: int) -> None:
    """So that no job is missing from a list because of a bit that flipped in its owner's name."""
    source = random.Random(f"{seed} {round_number}")
    filling = Filling(source.randrange(1 << 32))
    with Catalog(path) as catalog:
        filling.fill(catalog)
        answers = filling.answers(catalog)
    data = path.read_bytes()
    texts = [owner.encode() for owner in filling.owners] + [b"label1"]
    found = 0
    for _ in range(60):
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.write_bytes(mutate(data, source, texts))
        with Catalog(path) as catalog:
            if not catalog.is_complete() or catalog.find_damage() is not None:
                found += 1
            else:
                assert filling.answers(catalog) == answers
    assert found > 20


def test_the_check_finds_nothing_in_a_catalogue_that_is_sound(path: Path, seed: int) -> None:
    filling = Filling(seed)
    with Catalog(path) as catalog:
        assert catalog.find_damage() is None
        filling.fill(catalog)
        assert catalog.find_damage() is None
        for spec in filling.specs[::3]:
            catalog.remove(spec.id)
        assert catalog.find_damage() is None


@pytest.mark.parametrize(
    "statement",
    [
        "DROP INDEX by_end",
        "UPDATE total SET disk_bytes = disk_bytes + 1",
        "DELETE FROM total",
        "INSERT INTO total VALUES (0)",
        "CREATE TABLE others (id INTEGER)",
    ],
)
def test_the_check_finds_what_is_sound_for_sqlite_and_not_ours(path: Path, seed: int, statement: str) -> None:
    with Catalog(path) as catalog:
        Filling(seed).fill(catalog)
        database = sqlite3.connect(path, isolation_level=None)
        database.execute(statement)
        database.close()
        assert catalog.find_damage() is not None


@pytest.mark.parametrize("round_number", range(3))
def test_no_call_fails_for_good_whatever_is_damaged_while_it_is_open(path: Path, seed: int, round_number: int) -> None:
    """What SQLite notices has the catalogue made again; after it has been filled it answers as before."""
    source = random.Random(f"{seed} {round_number}")
    filling = Filling(source.randrange(1 << 32))
    with Catalog(path) as catalog:
        filling.fill(catalog)
        answers, specs = filling.answers(catalog), filling.specs
        calls: list[Callable[[], object]] = [
            catalog.total_bytes,
            catalog.unended,
            catalog.count_unended,
            catalog.is_complete,
            lambda: [*catalog.ended()],
            lambda: [*catalog.newest(None, before=None, name="", only_unended=False)],
            lambda: catalog.owner(specs[3].id),
            lambda: catalog.remove(specs[1].id),
            lambda: catalog.add(specs[0]),
            lambda: catalog.add_found(specs[7]),
            lambda: catalog.mark_ended(specs[2], specs[2].created_ns, 0),
            lambda: catalog.mark_damaged(specs[4].id, "", 1, 1),
            lambda: catalog.note_sizes({specs[7].id: 5}),
        ]
        for _ in range(15):
            settle(path)
            size, generation = path.stat().st_size, catalog.generation
            at, length = source.randrange(size // 512) * 512, source.choice([512, PAGE_BYTES, 10 * PAGE_BYTES])
            data = source.choice([bytes(length), source.randbytes(length)])
            write_elsewhere(path, at, data, size=source.choice([None, None, 0, at]))
            source.shuffle(calls)
            for call in calls:
                with contextlib.suppress(CatalogIncomplete):
                    call()
            if catalog.generation == generation:  # the damage has not been met, or did no harm
                catalog.reset("not noticed")
            filling.fill(catalog)
            assert filling.answers(catalog) == answers
            assert catalog.find_damage() is None


@pytest.mark.parametrize(
    ("text", "at", "byte"),
    [
        (b"disk_bytes INTEGER", 12, b"\xff"),  # a message that quotes it is not UTF-8
        (b"CREATE TABLE jobs", 3, b"#"),
        (b"SQLite format 3", 18, b"\x09"),  # the file is of a version that may only be read
        (b"SQLite format 3", 0, b"?"),
    ],
)
def test_a_damaged_schema_or_header_is_noticed_when_the_catalogue_is_opened_or_used(
    path: Path, seed: int, text: bytes, at: int, byte: bytes
) -> None:
    filling = Filling(seed)
    with Catalog(path) as catalog:
        filling.fill(catalog)
        answers = filling.answers(catalog)
    data = path.read_bytes()
    place = data.index(text) + at
    path.write_bytes(data[:place] + byte + data[place + 1 :])
    with Catalog(path) as catalog:
        catalog.remove(filling.specs[0].id)
        assert not catalog.is_complete()
        filling.fill(catalog)
        assert filling.answers(catalog) == answers


def test_a_text_that_is_not_utf_8_is_damage(path: Path, seed: int) -> None:
    filling = Filling(seed)
    with Catalog(path) as catalog:
        filling.fill(catalog)
    owner = filling.specs[0].owner.id
    path.write_bytes(path.read_bytes().replace(owner.encode(), b"\xff" + owner.encode()[1:]))
    with Catalog(path) as catalog:
        with pytest.raises(CatalogIncomplete):
            catalog.owner(filling.specs[0].id)
        assert not catalog.is_complete()


def test_an_id_that_is_no_job_id_is_damage_and_no_path(path: Path, seed: int) -> None:
    """Retention removes the folders that the catalogue names."""
    filling = Filling(seed)
    reads: list[Callable[[Catalog], object]] = [
        lambda catalog: [*catalog.ended()],
        lambda catalog: [*catalog.newest(None, before=None, name="", only_unended=False)],
    ]
    for read in reads:
        with Catalog(path) as catalog:
            filling.fill(catalog)
            database = sqlite3.connect(path)
            database.execute("UPDATE jobs SET id = '../pki' WHERE id = ?", (filling.specs[1].id,))
            database.commit()
            database.close()
            with pytest.raises(CatalogIncomplete):
                read(catalog)
            assert not catalog.is_complete()


def test_a_read_of_a_damaged_catalogue_says_so_and_a_write_is_repeated_on_the_new_one(path: Path, seed: int) -> None:
    filling = Filling(seed)
    reads: list[Callable[[Catalog], object]] = [
        lambda catalog: [*catalog.newest(None, before=None, name="", only_unended=False)],
        lambda catalog: [*catalog.ended()],
        lambda catalog: catalog.owner(filling.specs[0].id),
    ]
    for read in reads:
        with Catalog(path) as catalog:
            filling.fill(catalog)
            damage_all(path)
            with pytest.raises(CatalogIncomplete, match="try again"):
                read(catalog)
            assert not catalog.is_complete()
    with Catalog(path) as catalog:
        filling.fill(catalog)
        damage_all(path)
        catalog.mark_ended(filling.specs[5], 7, 8)
        assert [*catalog.ended()] == [EndedJob(filling.specs[5].id, 7, 8)]
        assert not catalog.is_complete()


def test_a_list_is_not_cut_short_by_a_catalogue_that_is_made_again(path: Path, seed: int) -> None:
    """Not even when another process does that, and not in the middle either."""
    filling = Filling(seed, 600)
    with Catalog(path) as catalog, Catalog(path) as other:
        filling.fill(catalog)
        jobs = catalog.newest(None, before=None, name="", only_unended=False)
        next(jobs)
        other.reset("as a test wants it")
        with pytest.raises(CatalogIncomplete):
            list(jobs)
        with pytest.raises(CatalogIncomplete):
            catalog.owner(filling.specs[0].id)


def test_a_catalogue_that_was_made_again_during_a_scan_is_not_complete_after_it(path: Path, seed: int) -> None:
    filling = Filling(seed)
    with Catalog(path) as catalog, Catalog(path) as other:
        generation = catalog.generation
        catalog.add_found(filling.specs[0])
        other.reset("as a test wants it")
        catalog.add_found(filling.specs[1])
        with pytest.raises(CatalogIncomplete):
            catalog.mark_complete(generation)
        assert not catalog.is_complete()
        catalog.mark_complete(catalog.generation)
        assert catalog.is_complete()


def test_one_process_makes_it_again_and_the_others_go_on_with_the_new_one(path: Path, seed: int) -> None:
    """Also if the file was emptied, of which SQLite does not see that another has replaced it."""
    filling = Filling(seed)
    for size in (None, 0):
        with Catalog(path) as catalog, other_process(path) as evaluate:
            filling.fill(catalog)
            assert evaluate("len([*catalog.ended()])") == str(len([*catalog.ended()]))
            damage_all(path)
            write_elsewhere(path, 0, b"", size)
            with pytest.raises(CatalogFailed):
                list(catalog.newest(None, before=None, name="", only_unended=False))
            filling.fill(catalog)
            answers = filling.answers(catalog)
            expected = str(len([*catalog.ended()]))
            while (answer := evaluate("len([*catalog.ended()])")) != expected:
                # It had read the emptied file before, and has made the catalogue again for good measure.
                assert answer in ("CatalogIncomplete", "0")
                filling.fill(catalog)
            assert evaluate(f"catalog.remove({filling.specs[1].id!r})") == "None"
            assert filling.specs[1].id not in [job.id for job in catalog.ended()]
            filling.fill(catalog)
            assert filling.answers(catalog) == answers
        assert Catalog(path).find_damage() is None


def test_a_catalogue_that_another_process_has_made_again_is_not_made_again_once_more(path: Path, seed: int) -> None:
    """Both find the damage at the same time, and the second may come when the first has entered jobs."""
    filling = Filling(seed)
    with Catalog(path) as first, Catalog(path) as second:
        first.reset("as a test wants it")
        filling.fill(first)
        second.reset("as a test wants it")
        assert second.is_complete()
        assert filling.answers(second) == filling.answers(first)


def test_an_emptied_file_that_is_in_use_keeps_no_other_process_from_opening_the_catalogue(
    path: Path, seed: int
) -> None:
    """Those who have it open hold a lock on it, and may not look at it for long."""
    filling = Filling(seed)
    with Catalog(path) as first:
        filling.fill(first)
        settle(path)
        write_elsewhere(path, 0, b"", 0)
        with Catalog(path) as second:
            filling.fill(second)
            assert filling.answers(first) == filling.answers(second)


def test_the_last_to_leave_an_emptied_file_takes_no_rows_of_the_new_one_away(path: Path, seed: int) -> None:
    """SQLite then removes the write-ahead log at the path, which is that of the new file."""
    filling = Filling(seed)
    with Catalog(path) as catalog:
        filling.fill(catalog)
        answers = filling.answers(catalog)
    with Catalog(path) as first, other_process(path) as evaluate:  # the log is empty
        assert evaluate("catalog.is_complete()") == "True"
        write_elsewhere(path, 0, b"", 0)
        # As in the moment before the first finds it.
        assert evaluate("catalog._database._database.execute('SELECT * FROM jobs')") == "DatabaseError"
        with pytest.raises(CatalogIncomplete):
            list(first.ended())
        filling.fill(first)
        settle(path)
        evaluate("catalog.is_complete()")
        first.remove(filling.specs[0].id)
        filling.fill(first)
        assert evaluate("len([*catalog.ended()])") == str(len([*first.ended()]))
        assert evaluate(f"catalog.remove({filling.specs[1].id!r})") == "None"
        assert filling.specs[1].id not in [job.id for job in first.ended()]
        filling.fill(first)
        with Catalog(path) as third:
            assert [filling.answers(each) for each in (first, third)] == [answers] * 2
            assert third.find_damage() is None


def test_a_full_disk_is_no_damage(path: Path, seed: int) -> None:
    filling = Filling(seed)
    with Catalog(path) as catalog:
        filling.fill(catalog)
        ended, generation = {*catalog.ended()}, catalog.generation
        catalog._execute("PRAGMA max_page_count = 1")
        with pytest.raises(CatalogFailed, match="full"):
            Filling(seed + 1, 1000).fill(catalog)
        assert catalog.generation == generation
        assert ended <= {*catalog.ended()}
