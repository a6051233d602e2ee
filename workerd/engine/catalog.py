"""The catalogue: which jobs there are, in SQLite, so that a list need not open every folder.

It holds nothing that the folders do not say. It may be deleted or damaged at any time: it is then made again, empty at
first, and is not complete before every folder has been entered.
"""

import heapq
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workerd.engine.catalog_schema import BUILDING, COMPLETE, SCHEMA, TOTAL_FITS
from workerd.engine.database import Database, Values
from workerd.engine.errors import CatalogIncomplete
from workerd.engine.job import JobSpec

_OTHERS = (
    "SELECT count(*) FROM jobs WHERE ended_ns = 0 AND id <> :id AND id NOT IN (SELECT value FROM json_each(:besides))"
)
# Rows are updated, not replaced: REPLACE fires no trigger for the row that goes (sqlite.org/lang_conflict.html).
_ADD = f"""
INSERT INTO jobs (id, owner, name, created_ns) SELECT :id, :owner, :name, :created_ns
WHERE (:most = 0 OR ({_OTHERS}) < :most)
    AND (:most_of_owner = 0 OR ({_OTHERS} AND owner = :owner) < :most_of_owner)
ON CONFLICT (id) DO UPDATE SET owner = :owner, name = :name, created_ns = :created_ns, ended_ns = 0, disk_bytes = 0
RETURNING id
"""
_ADD_FOUND = "INSERT INTO jobs (id, owner, name, created_ns) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
_MARK_ENDED = """
INSERT INTO jobs (id, owner, name, created_ns, ended_ns, disk_bytes)
VALUES (:id, :owner, :name, :created_ns, :ended_ns, :disk_bytes)
ON CONFLICT (id) DO UPDATE SET
    owner = :owner, name = :name, created_ns = :created_ns, ended_ns = :ended_ns, disk_bytes = :disk_bytes
"""
_MARK_DAMAGED = """
INSERT INTO jobs (id, owner, name, created_ns, ended_ns, disk_bytes)
VALUES (:id, :owner, '', :changed_ns, :changed_ns, :disk_bytes)
ON CONFLICT (id) DO UPDATE SET
    owner = CASE owner WHEN '' THEN :owner ELSE owner END, ended_ns = :changed_ns, disk_bytes = :disk_bytes
"""
# The sign keeps SQLite from looking at all unended jobs for each size (sqlite.org/optoverview.html).
_NOTE_SIZES = """
UPDATE jobs SET disk_bytes = sizes.value FROM json_each(?) AS sizes
WHERE jobs.id = sizes.key AND +ended_ns = 0 AND disk_bytes <> sizes.value
"""
_SHARE = """
INSERT INTO shares (grantee, created_ns, id)
SELECT grantees.value, jobs.created_ns, jobs.id FROM jobs, json_each(:grantees) AS grantees WHERE jobs.id = :id
ON CONFLICT DO NOTHING
"""
_SHARED = "FROM shares JOIN jobs USING (created_ns, id) WHERE grantee = ? AND"
_LISTED = "FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND"
_UNNOTED = """
SELECT ifnull(sum(sizes.value - jobs.disk_bytes), 0) FROM json_each(?) AS sizes CROSS JOIN jobs
WHERE jobs.id = sizes.key AND +ended_ns = 0
"""
_ENDED = "SELECT id, ended_ns, disk_bytes FROM jobs WHERE (ended_ns, id) > (?, ?) ORDER BY ended_ns, id LIMIT ?"
_LATEST = 2**63 - 1
_FIRST_ROWS, _ROWS = 16, 256
_JOB_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that will not change any more: when it ended, nanoseconds since the epoch, and its bytes on the disk."""

    id: str
    ended_ns: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Reach:
    """Where to look for the jobs of all owners that a user may see.

    Attributes:
        owner: the user's id.
        grantees: the user's id and name, which jobs may be shared with.
        ids: of further jobs.
    """

    owner: str
    grantees: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()


class Catalog:
    """One row for each job.

    A method that writes, or counts, is repeated on the new catalogue when it finds the old one damaged. One that reads
    jobs is not: what it would return is not all.

    Attributes:
        generation: a number that changes when the catalogue is made again, and its rows may be missing.

    Raises:
        CatalogFailed: from every method, when the database cannot do what is asked, as on a full disk.
        CatalogBusy: from every method, when another program holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(path, SCHEMA, (BUILDING, COMPLETE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    @property
    def generation(self) -> int:
        """A number that changes when the catalogue is made again."""
        self._database.follow()
        return self._database.generation

    def find_damage(self) -> str | None:
        """Check the whole file, and return what is wrong with it; None if nothing is.

        It takes time that grows with the number of jobs, and may be called on any thread.
        """
        return self._database.find_damage(TOTAL_FITS)

    def reset(self, problem: str) -> None:
        """Begin the catalogue again because it is damaged; the argument says how."""
        self._database.reset(problem)

    def is_complete(self) -> bool:
        """Return whether every job has been entered since the catalogue was begun."""
        return bool(self._execute("PRAGMA user_version")[0][0] == COMPLETE)

    def mark_incomplete(self) -> None:
        """Note that jobs may be missing, so that lists wait for `mark_complete`."""
        self._execute(f"PRAGMA user_version = {BUILDING}")

    def mark_complete(self, generation: int) -> None:
        """Note that every job has been entered.

        Args:
            generation: the catalogue's, before the first was entered.

        Raises:
            CatalogIncomplete: it has been made again since then.
        """
        if self.generation != generation:
            raise CatalogIncomplete(self._path)
        self._execute(f"PRAGMA user_version = {COMPLETE}")

    def add(self, spec: JobSpec, *, most: int = 0, most_of_owner: int = 0, besides: Collection[str] = ()) -> bool:
        """Enter a job that has just been made, as not ended, unless too many others have not.

        Counting and entering are one transaction, so that of all processes that do it none passes the limit.

        Args:
            most: how many there may be with it, whoever owns them; zero for any number.
            most_of_owner: how many of its owner.
            besides: the ids of jobs that do not count.

        Returns:
            Whether it was entered.
        """
        values = _describe(spec) | {"most": most, "most_of_owner": most_of_owner}
        return bool(self._execute(_ADD, values | {"besides": json.dumps([*besides])}))

    def add_found(self, spec: JobSpec) -> None:
        """Enter a job that was found in its folder, as not ended unless it is known to have."""
        self._execute(_ADD_FOUND, (spec.id, spec.owner.id, spec.name, spec.created_ns))

    def mark_ended(self, spec: JobSpec, ended_ns: int, disk_bytes: int) -> None:
        """Note that a job will not change any more, entering it if need be."""
        self._execute(_MARK_ENDED, _describe(spec) | {"ended_ns": ended_ns, "disk_bytes": disk_bytes})

    def mark_damaged(self, job_id: str, owner_id: str, changed_ns: int, disk_bytes: int) -> None:
        """Note that a job's folder cannot be read, entering it if need be: for lists and retention it has ended.

        What an earlier row says of its owner, its label and its beginning is kept.

        Args:
            job_id: the job's.
            owner_id: the owner's; empty if unknown.
            changed_ns: when the folder was last changed, nanoseconds since the epoch; it stands for the end.
            disk_bytes: the folder's.
        """
        changed_ns = min(max(changed_ns, 1), _LATEST - 1)
        values: Values = {"id": job_id, "owner": owner_id, "changed_ns": changed_ns, "disk_bytes": disk_bytes}
        self._execute(_MARK_DAMAGED, values)

    def note_sizes(self, disk_bytes: Mapping[str, int]) -> None:
        """Note how much of the disk jobs take that have not ended, by id; those that have are passed over."""
        self._execute(_NOTE_SIZES, (json.dumps(disk_bytes),))

    def unnoted_bytes(self, disk_bytes: Mapping[str, int]) -> int:
        """Return by how much `note_sizes` would increase `total_bytes`."""
        rows = self._read(_UNNOTED, (json.dumps(disk_bytes),), _is_integer)
        return sum(size for (size,) in rows)

    def total_bytes(self) -> int:
        """Return how much of the disk all jobs take together, as far as it was noted."""
        rows = self._read("SELECT disk_bytes FROM total", (), _is_integer)
        return sum(size for (size,) in rows)

    def add_shares(self, job_id: str, grantees: Collection[str]) -> None:
        """Add the users, by id or name, that a job in the catalogue is shared with. None is taken out."""
        self._execute(_SHARE, {"id": job_id, "grantees": json.dumps([*grantees])})

    def remove(self, job_id: str) -> None:
        """Take a job out."""
        self._execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def ended(self, after: tuple[int, str] | None = None) -> Iterator[EndedJob]:
        """Walk the jobs known to have ended, those that ended first at the beginning. Others may be removed meanwhile.

        Args:
            after: the end and the id of the job after which to begin; None for the start.
        """
        position = after or (1, "")
        for limit in itertools.chain((_FIRST_ROWS,), itertools.repeat(_ROWS)):
            rows = self._read(_ENDED, (*position, limit), _is_job_id, _is_integer, _is_integer)
            yield from itertools.starmap(EndedJob, rows)
            if len(rows) < limit:
                return
            position = (rows[-1][1], rows[-1][0])

    def unended(self) -> list[str]:
        """Return the ids of all jobs not known to have ended."""
        return [job_id for (job_id,) in self._read("SELECT id FROM jobs WHERE ended_ns = 0", (), _is_job_id)]

    def count_unended(self, owner: str | None = None, besides: Collection[str] = ()) -> int:
        """Count the jobs not known to have ended.

        Args:
            owner: only those of the owner with this id; None for everybody's.
            besides: the ids of jobs that do not count.
        """
        query = "SELECT count(*) FROM jobs WHERE ended_ns = 0 AND id NOT IN (SELECT value FROM json_each(?))"
        values = [json.dumps([*besides])]
        if owner is not None:
            query += " AND owner = ?"
            values.append(owner)
        return int(self._execute(query, values)[0][0])

    def owner(self, job_id: str) -> str | None:
        """Return the id of a job's owner; None if the job is not entered.

        Raises:
            CatalogIncomplete: it may be one of those that have not been entered again yet.
        """
        rows = self._read("SELECT owner FROM jobs WHERE id = ?", (job_id,), _is_text)
        if not rows and not self.is_complete():
            raise CatalogIncomplete(self._path)
        return str(rows[0][0]) if rows else None

    def knows_end(self, job_id: str) -> bool:
        """Return whether a job is known to have ended, or to be damaged."""
        return bool(self._execute("SELECT 1 FROM jobs WHERE id = ? AND ended_ns > 0", (job_id,)))

    def unended_of(self, owner: str) -> list[str]:
        """Return the ids of an owner's jobs not known to have ended."""
        query = "SELECT id FROM jobs WHERE ended_ns = 0 AND owner = ?"
        return [job_id for (job_id,) in self._read(query, (owner,), _is_job_id)]

    def newest(
        self, owner: str | Reach | None, *, before: tuple[int, str] | None, name: str, only_unended: bool
    ) -> Iterator[tuple[int, str]]:
        """Walk the jobs of a complete catalogue, newest first. A walk does not read the rows of other owners.

        Args:
            owner: only those of the owner with this id, or within this reach; None for everybody's.
            before: the position, as this method gives it, after which to go on; None for the start.
            name: only jobs with this label; empty for any.
            only_unended: leave out those known to have ended.

        Yields:
            The positions of the jobs: creation time in nanoseconds since the epoch, and id.

        Raises:
            CatalogIncomplete: it is not complete, or has been made again since the first job.
        """
        start, further = before or (_LATEST, ""), ""
        values: list[str] = []
        if name:
            further += " AND name = ?"
            values.append(name)
        if only_unended:
            further += " AND ended_ns = 0"
        match owner:
            case None:
                yield from self._walk("FROM jobs WHERE", [], start, further, values)
            case str():
                yield from self._walk("FROM jobs WHERE owner = ? AND", [owner], start, further, values)
            case Reach():
                sources = [("FROM jobs WHERE owner = ? AND", owner.owner)]
                sources += [(_SHARED, grantee) for grantee in sorted(owner.grantees)]
                if owner.ids:
                    sources.append((_LISTED, json.dumps([*owner.ids])))
                walks = (self._walk(source, [value], start, further, values) for source, value in sources)
                for position, _ in itertools.groupby(heapq.merge(*walks, reverse=True)):
                    yield position

    def _walk(
        self, source: str, chosen: Sequence[str], start: tuple[int, str], further: str, values: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        """Walk one part of the jobs, as `newest` does.

        Args:
            source: the tables and the first condition, with the parameters `chosen`.
            further: further conditions, with the parameters `values`.
        """
        query = f"SELECT created_ns, id {source} (created_ns, id) < (?, ?){further}"
        query += f" ORDER BY created_ns DESC, id DESC LIMIT {_ROWS}"
        position: tuple[int, str] | None = start
        while position is not None:
            rows = self._read(query, [*chosen, *position, *values], _is_integer, _is_job_id)
            if not self.is_complete():
                raise CatalogIncomplete(self._path)
            yield from rows
            position = rows[-1] if len(rows) == _ROWS else None

    def _execute(self, statement: str, values: Values = ()) -> list[Any]:
        """Execute a statement, again on the new catalogue if the old one is damaged."""
        try:
            return self._database.execute(statement, values)
        except CatalogIncomplete:
            return self._database.execute(statement, values)

    def _read(self, query: str, values: Sequence[str | int], *checks: Callable[[Any], bool]) -> list[Any]:
        """Read jobs.

        Args:
            query: reads them.
            values: its parameters.
            checks: one for each column; what does not pass is damaged.

        Raises:
            CatalogIncomplete: the catalogue is damaged, and has been made again.
        """
        rows = self._database.execute(query, values)
        if not all(check(value) for row in rows for check, value in zip(checks, row, strict=True)):
            self.reset("a row has a value that no job has")
            raise CatalogIncomplete(self._path)
        return rows


def _describe(spec: JobSpec) -> dict[str, str | int]:
    """Return the values of a job's row that its spec has, by their names in the statements."""
    return {"id": spec.id, "owner": spec.owner.id, "name": spec.name, "created_ns": spec.created_ns}


def _is_integer(value: object) -> bool:
    return type(value) is int


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_job_id(value: object) -> bool:
    return type(value) is str and _JOB_ID.fullmatch(value) is not None
