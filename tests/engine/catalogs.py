"""Catalogues for tests: filled, compared and damaged."""

import os
import random
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from workerd.engine.catalog import Catalog, Reach
from workerd.engine.job import JobSpec, User

SECOND_NS = 10**9
BEGAN_NS = 1_700_000_000 * SECOND_NS
PAGE_BYTES = 4096


def draw_id(source: random.Random) -> str:
    """Draw a job's id."""
    return str(uuid.UUID(int=source.getrandbits(128), version=4))


class Filling:
    """What a catalogue holds, and what it must answer.

    Args:
        seed: of what is drawn.
        count: of the jobs. Every seventh has not ended.
    """

    def __init__(self, seed: int, count: int = 150) -> None:
        source = random.Random(seed)
        self.owners = [draw_id(source) for _ in range(3)]
        self.specs = [self._draw(source, number) for number in range(count)]
        self._ends = [
            (spec.created_ns + source.randrange(SECOND_NS), source.randrange(100) << 12) for spec in self.specs
        ]

    def _draw(self, source: random.Random, number: int) -> JobSpec:
        return JobSpec(
            id=draw_id(source),
            owner=User(source.choice(self.owners), "somebody"),
            program="true",
            working_directory="/",
            name=f"label{number % 5}",
            created_ns=BEGAN_NS + number * SECOND_NS,
        )

    def fill(self, catalog: Catalog) -> None:
        """Enter all jobs."""
        generation = catalog.generation
        for number, (spec, end) in enumerate(zip(self.specs, self._ends, strict=True)):
            if number % 7:
                catalog.mark_ended(spec, *end)
            else:
                catalog.add(spec)
            if number % 3 == 0:
                catalog.add_shares(spec.id, [self.owners[number % 2], "bob"])
        catalog.mark_complete(generation)

    def answers(self, catalog: Catalog) -> list[object]:
        """Ask everything that a catalogue can be asked."""
        owners = (None, *self.owners)
        named = frozenset({self.specs[1].id})
        reaches = [Reach(self.owners[0], frozenset({each, "bob"}), named) for each in self.owners]
        questions = [(owner, name, only) for owner in owners for name in ("", "label1") for only in (False, True)]
        return [
            [*catalog.ended()],
            catalog.total_bytes(),
            sorted(catalog.unended()),
            [sorted(catalog.unended_of(owner)) for owner in self.owners],
            [catalog.count_unended(owner) for owner in owners],
            [catalog.owner(spec.id) for spec in self.specs],
            [[*catalog.newest(owner, before=None, name=name, only_unended=only)] for owner, name, only in questions],
            [[*catalog.newest(reach, before=None, name="", only_unended=False)] for reach in reaches],
        ]


def write_elsewhere(path: Path, at: int, data: bytes, size: int | None = None) -> None:
    """Write into a file as another process: SQLite loses its locks when this one closes the file.

    Args:
        path: the file.
        at: the offset.
        data: what is written there.
        size: what the file is cut to.
    """
    if (pid := os.fork()) == 0:
        descriptor = os.open(path, os.O_WRONLY)
        if size is not None:
            os.ftruncate(descriptor, size)
        os.pwrite(descriptor, data, at)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def settle(path: Path) -> None:
    """Move everything from the write-ahead log to the file itself, where damage is done."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def damage_all(path: Path) -> None:
    """Overwrite every page of an open catalogue but the first, which has the header."""
    settle(path)
    size = path.stat().st_size
    write_elsewhere(path, PAGE_BYTES, b"\xa5" * (size - PAGE_BYTES))


def mutate(data: bytes, source: random.Random, texts: Sequence[bytes]) -> bytes:
    """Damage bytes in one place of one kind.

    Args:
        data: a whole file.
        source: what is drawn from.
        texts: some that are in it.
    """
    changed = bytearray(data)
    at, length = source.randrange(len(data)), source.choice([8, 100, PAGE_BYTES])
    pages = len(data) // PAGE_BYTES
    match source.randrange(7):
        case 0:
            changed[at] ^= 1 << source.randrange(8)
        case 1:
            changed[at] = source.randrange(256)
        case 2:
            changed[at : at + length] = bytes(len(data[at : at + length]))
        case 3:
            changed[at : at + length] = source.randbytes(len(data[at : at + length]))
        case 4:
            del changed[at:]
        case 5:
            one, other = (slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES) for page in source.sample(range(pages), 2))
            changed[one], changed[other] = data[other], data[one]
        case _:
            text = source.choice(texts)
            at = source.choice(_find_all(data, text)) + source.randrange(len(text))
            changed[at] ^= 1
    return bytes(changed)


def _find_all(data: bytes, text: bytes) -> list[int]:
    places, at = [], data.find(text)
    while at >= 0:
        places.append(at)
        at = data.find(text, at + 1)
    return places


def enter_many(path: Path, rows: Iterable[tuple[str, str, int, int, int]]) -> None:
    """Enter jobs that have ended, in one transaction.

    Args:
        path: the catalogue.
        rows: id, owner, creation, end and bytes of each.
    """
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("BEGIN IMMEDIATE")
    database.executemany(
        "INSERT INTO jobs (id, owner, name, created_ns, ended_ns, disk_bytes) VALUES (?, ?, '', ?, ?, ?)", rows
    )
    database.execute("COMMIT")
    database.close()
