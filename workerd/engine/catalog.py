"""The catalogue: which jobs there are, in SQLite, so that listing need not open every folder.

It holds nothing that the folders do not say, and is made again from them when it is missing.
"""

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from workerd.engine.job import JobSpec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, created_ns INTEGER NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID, STRICT;
CREATE INDEX IF NOT EXISTS newest ON jobs (owner, created_ns DESC, id DESC);
"""


class Catalog:
    """One row for each job."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._database = sqlite3.connect(path, isolation_level=None)
        # What a power cut takes from it, the folders give back: no transaction needs to wait for the disk.
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, spec: JobSpec) -> None:
        """Enter a job; one that is there stays as it is."""
        self._database.execute(
            "INSERT OR IGNORE INTO jobs (id, owner, name, created_ns) VALUES (?, ?, ?, ?)",
            (spec.id, spec.owner.id, spec.name, spec.created_ns),
        )

    def remove(self, job_id: str) -> None:
        """Take a job out."""
        self._database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def mark_ended(self, job_id: str) -> None:
        """Note that a job will not change any more."""
        self._database.execute("UPDATE jobs SET ended = 1 WHERE id = ?", (job_id,))

    def ended(self) -> set[str]:
        """Give the ids of all jobs known to have ended."""
        return {job_id for (job_id,) in self._database.execute("SELECT id FROM jobs WHERE ended = 1")}

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
        return self._database.execute(query + " ORDER BY created_ns DESC, id DESC", values)
