"""The catalogue: which jobs there are, in SQLite, so that listing need not open every folder.

It holds nothing that the folders do not say, and is made again from them when it is missing.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workerd.engine.errors import CatalogFailed
from workerd.engine.job import JobSpec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, created_ns INTEGER NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID, STRICT;
CREATE INDEX IF NOT EXISTS newest ON jobs (owner, created_ns DESC, id DESC);
"""


class Catalog:
    """One row for each job.

    Raises:
        CatalogFailed: from every method, when the database does not do what it is asked to, as on a full disk.
    """

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        try:
            self._database = _open(path)
        except sqlite3.OperationalError as error:
            raise CatalogFailed(path, str(error)) from error
        except sqlite3.DatabaseError:  # a power cut may corrupt it; then it is made again from the folders
            for file in path.parent.glob(f"{path.name}*"):
                file.unlink()
            self._database = _open(path)
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, spec: JobSpec) -> None:
        """Enter a job, as not ended."""
        self._execute(
            "INSERT INTO jobs (id, owner, name, created_ns) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
            " SET owner = excluded.owner, name = excluded.name, created_ns = excluded.created_ns, ended = 0",
            (spec.id, spec.owner.id, spec.name, spec.created_ns),
        )

    def remove(self, job_id: str) -> None:
        """Take a job out."""
        self._execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def mark_ended(self, job_id: str) -> None:
        """Note that a job will not change any more."""
        self._execute("UPDATE jobs SET ended = 1 WHERE id = ?", (job_id,))

    def ended(self) -> set[str]:
        """Give the ids of all jobs known to have ended."""
        return {job_id for (job_id,) in self._execute("SELECT id FROM jobs WHERE ended = 1")}

    def newest(
        self, owner: str, *, before: tuple[int, str] | None, name: str, only_unended: bool
    ) -> Iterable[tuple[int, str]]:
        """Walk an owner's jobs, newest first.

        Args:
            owner: the owner's id.
            before: the position, as this method gives it, after which to go on; None for the start.
            name: only jobs with this label; empty for any.
            only_unended: leave out those known to have ended.

        Returns:
            The positions of the jobs: creation time in nanoseconds since the epoch, and id.
        """
        query = "SELECT created_ns, id FROM jobs WHERE owner = ?"
        values: list[str | int] = [owner]
        if before is not None:
            query += " AND (created_ns, id) < (?, ?)"
            values += before
        if name:
            query += " AND name = ?"
            values.append(name)
        if only_unended:
            query += " AND ended = 0"
        return self._execute(query + " ORDER BY created_ns DESC, id DESC", values)

    def _execute(self, statement: str, values: Sequence[str | int] = ()) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise CatalogFailed(self._path, str(error)) from error


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None)
    # What a power cut takes from it, the folders give back: no transaction needs to wait for the disk.
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    database.executescript(_SCHEMA)
    return database
