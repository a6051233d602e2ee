"""The catalogue: which jobs there are, in SQLite, so that listing need not open every folder.

It holds nothing that the folders do not say. Somebody may delete it at any time: it is then begun anew, and is not
complete before every folder has been entered again.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workerd.engine.errors import CatalogBusy, CatalogFailed
from workerd.engine.files import private
from workerd.engine.job import JobSpec

_BUILDING, _COMPLETE = 4, 5  # PRAGMA user_version; any other is not ours, or older
_SCHEMA = f"""
BEGIN IMMEDIATE;
DROP TABLE IF EXISTS jobs;
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, created_ns INTEGER NOT NULL,
    ended_ns INTEGER NOT NULL DEFAULT 0, disk_bytes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID, STRICT;
CREATE INDEX newest ON jobs (owner, created_ns DESC, id DESC);
CREATE INDEX newest_of_all ON jobs (created_ns DESC, id DESC);
CREATE INDEX ended ON jobs (ended_ns);
CREATE INDEX unended ON jobs (owner) WHERE ended_ns = 0;
PRAGMA user_version = {_BUILDING};
COMMIT;
"""
_OTHERS = "SELECT count(*) FROM jobs WHERE ended_ns = 0 AND id <> ?1 AND id NOT IN (SELECT value FROM json_each(?7))"
_ADD = f"""
INSERT OR REPLACE INTO jobs (id, owner, name, created_ns) SELECT ?1, ?2, ?3, ?4
WHERE (?5 = 0 OR ({_OTHERS}) < ?5) AND (?6 = 0 OR ({_OTHERS} AND owner = ?2) < ?6) RETURNING id
"""
_BUSY_SECONDS = 2.0  # the event loop waits with it: well below the silence after which a client gives a daemon up
_LATEST = 2**63 - 1
_ROWS = 256


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that will not change any more: when it ended, nanoseconds since the epoch, and its bytes on the disk."""

    id: str
    ended_ns: int
    disk_bytes: int


class Catalog:
    """One row for each job.

    Raises:
        CatalogFailed: from every method, when the database does not do what it is asked to, as on a full disk.
        CatalogBusy: the same, when another program holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def is_complete(self) -> bool:
        """Tell whether every job has been entered since the catalogue was begun."""
        return bool(self._execute("PRAGMA user_version")[0][0] == _COMPLETE)

    def mark_complete(self) -> None:
        """Note that every job has been entered."""
        self._execute(f"PRAGMA user_version = {_COMPLETE}")

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
        values = (spec.id, spec.owner.id, spec.name, spec.created_ns, most, most_of_owner, json.dumps([*besides]))
        return bool(self._execute(_ADD, values))

    def add_found(self, spec: JobSpec) -> None:
        """Enter a job that was found in its folder, as not ended unless it is known to have."""
        self._execute(
            "INSERT OR IGNORE INTO jobs (id, owner, name, created_ns) VALUES (?, ?, ?, ?)",
            (spec.id, spec.owner.id, spec.name, spec.created_ns),
        )

    def mark_ended(self, spec: JobSpec, ended_ns: int, disk_bytes: int) -> None:
        """Note that a job will not change any more, entering it if need be."""
        self._execute(
            "INSERT OR REPLACE INTO jobs (id, owner, name, created_ns, ended_ns, disk_bytes) VALUES (?, ?, ?, ?, ?, ?)",
            (spec.id, spec.owner.id, spec.name, spec.created_ns, ended_ns, disk_bytes),
        )

    def mark_damaged(self, job_id: str, owner_id: str, changed_ns: int, disk_bytes: int) -> None:
        """Note a job whose folder cannot be read as one that will not change any more, entering it if need be."""
        self._execute(
            "INSERT INTO jobs (id, owner, name, created_ns, ended_ns, disk_bytes) VALUES (?1, ?2, '', ?3, ?3, ?4)"
            " ON CONFLICT (id) DO UPDATE SET ended_ns = excluded.ended_ns, disk_bytes = excluded.disk_bytes",
            (job_id, owner_id, changed_ns, disk_bytes),
        )

    def remove(self, job_id: str) -> None:
        """Take a job out."""
        self._execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def ended(self) -> list[EndedJob]:
        """Give all jobs known to have ended, those that ended first at the beginning."""
        rows = self._execute("SELECT id, ended_ns, disk_bytes FROM jobs WHERE ended_ns > 0 ORDER BY ended_ns, id")
        return [EndedJob(*row) for row in rows]

    def unended(self) -> list[str]:
        """Give the ids of all jobs not known to have ended."""
        return [job_id for (job_id,) in self._execute("SELECT id FROM jobs WHERE ended_ns = 0")]

    def count_unended(self, owner: str | None = None, besides: Collection[str] = ()) -> int:
        """Count the jobs not known to have ended.

        Args:
            owner: only those of the owner with this id; None for everybody's.
            besides: the ids of jobs that do not count.
        """
        query = "SELECT count(*) FROM jobs WHERE ended_ns = 0 AND id NOT IN (SELECT value FROM json_each(?1))"
        values = [json.dumps([*besides])]
        if owner is not None:
            query += " AND owner = ?2"
            values.append(owner)
        return int(self._execute(query, values)[0][0])

    def owner(self, job_id: str) -> str | None:
        """Tell the id of a job's owner; None if the job is not entered."""
        rows = self._execute("SELECT owner FROM jobs WHERE id = ?", (job_id,))
        return str(rows[0][0]) if rows else None

    def unended_of(self, owner: str) -> list[str]:
        """Give the ids of an owner's jobs not known to have ended."""
        return [job_id for (job_id,) in self._execute("SELECT id FROM jobs WHERE ended_ns = 0 AND owner = ?", (owner,))]

    def newest(
        self, owner: str | None, *, before: tuple[int, str] | None, name: str, only_unended: bool
    ) -> Iterator[tuple[int, str]]:
        """Walk the jobs, newest first.

        Args:
            owner: only those of the owner with this id; None for everybody's.
            before: the position, as this method gives it, after which to go on; None for the start.
            name: only jobs with this label; empty for any.
            only_unended: leave out those known to have ended.

        Yields:
            The positions of the jobs: creation time in nanoseconds since the epoch, and id.
        """
        position: tuple[int, str] | None = before or (_LATEST, "")
        while position is not None:
            query = "SELECT created_ns, id FROM jobs WHERE (created_ns, id) < (?, ?)"
            values: list[str | int] = [*position]
            if owner is not None:
                query += " AND owner = ?"
                values.append(owner)
            if name:
                query += " AND name = ?"
                values.append(name)
            if only_unended:
                query += " AND ended_ns = 0"
            rows = self._execute(f"{query} ORDER BY created_ns DESC, id DESC LIMIT {_ROWS}", values)
            yield from rows
            position = rows[-1] if len(rows) == _ROWS else None

    def _execute(self, statement: str, values: Sequence[str | int] = ()) -> list[Any]:
        try:
            if not self._is_in_place():
                self._database.close()
                self._open()
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error) -> CatalogFailed:
        # The low byte is the primary code (sqlite.org/rescode.html); not every error comes from SQLite itself.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            return CatalogBusy(self._path, _BUSY_SECONDS)
        return CatalogFailed(self._path, str(error))

    def _is_in_place(self) -> bool:
        """Tell whether the file is still the one that was opened."""
        try:
            return os.path.samestat(os.stat(self._path), self._opened)
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        # Of several processes that find the file gone, one begins it anew.
        with open(self._path.with_suffix(".lock"), "wb", opener=private) as lock:
            os.fchmod(lock.fileno(), 0o600)  # whoever may read it may hold it, and the daemon up (flock(2))
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if not self._path.exists():
                    self._clear()
                try:
                    self._database = _connect(self._path)
                except sqlite3.OperationalError:
                    raise
                except sqlite3.DatabaseError:  # a power cut may corrupt it
                    self._clear()
                    self._database = _connect(self._path)
            except sqlite3.Error as error:
                raise self._failure(error) from error
            self._opened = os.stat(self._path)

    def _clear(self) -> None:
        """Remove the file with its companions, which are worth nothing without it (sqlite.org/tempfiles.html)."""
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.touch(mode=0o600)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
    # What a power cut takes from it, the folders give back: no transaction needs to wait for the disk.
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    if database.execute("PRAGMA user_version").fetchone()[0] not in (_BUILDING, _COMPLETE):
        database.executescript(_SCHEMA)
    return database
