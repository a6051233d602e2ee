"""The file of the catalogue: a SQLite database that may be deleted or damaged at any time, and is then made again.

Several processes have it open. The one that finds it damaged puts an empty one in its place, under a lock; the others
see by the inode that the file at the path is not the one that they opened.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from system.file_lock import LockHeld, lock_within
from workerd.engine.errors import CatalogBusy, CatalogFailed, CatalogIncomplete
from workerd.engine.files import private

log = structlog.get_logger()
Values = Sequence[str | int] | Mapping[str, str | int]
"""The parameters of a statement: in their order, or by name."""
_BUSY_SECONDS = 2.0  # the event loop waits with it: well below the silence after which a client gives a daemon up
_LOCK_SECONDS = 2 * _BUSY_SECONDS  # another process may wait for SQLite while it holds the lock
_SOUND = {  # what the machine or another program keeps SQLite from doing (sqlite.org/rescode.html)
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_AUTH,
}
_UNREADABLE = {  # errors of reading that a new file does away with
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_DATA,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
}

# UnicodeDecodeError: of a message that quotes a damaged schema.
_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class Database:
    """A database that is made with its schema where there is none, and again whenever it is damaged.

    Args:
        path: the file. Beside it are SQLite's own, and one with the suffix `.lock`.
        schema: the SQL that makes everything, in one transaction; it sets one of `versions`.
        versions: the values of `PRAGMA user_version` of a database that this schema made.

    Attributes:
        generation: how many databases have been opened. After it has changed, rows may be missing.

    Raises:
        CatalogFailed: from every method, when the database cannot do what is asked, as on a full disk.
        CatalogBusy: from every method, when another program holds it.
    """

    def __init__(self, path: Path, schema: str, versions: tuple[int, ...]) -> None:
        self._path = path
        self._schema = schema
        self._versions = versions
        self.generation = 0
        self._opened: os.stat_result | None = None
        with self._locked():
            self._database = self._open()

    def close(self) -> None:
        """Close it."""
        if not self._is_in_place():
            with contextlib.suppress(OSError, CatalogBusy), self._locked():  # OSError: the folder may have gone, too
                self._leave()
        self._database.close()

    def follow(self) -> None:
        """Open the file that is at the path now, if it is another one than that which was opened."""
        if not self._is_in_place():
            with self._locked():
                self._reopen()

    def execute(self, statement: str, values: Values = ()) -> list[Any]:
        """Execute a statement, and return all rows.

        Raises:
            CatalogIncomplete: the database was damaged. It has been made again, and is empty.
        """
        self.follow()
        try:
            return self._database.execute(statement, values).fetchall()
        except _ERRORS as error:
            if not self._shows_damage(error):
                raise self._failure(error) from error
            self.reset(str(error))
            raise CatalogIncomplete(self._path) from error

    def reset(self, problem: str) -> None:
        """Put an empty database in the place of a damaged one, unless another process has done so.

        Args:
            problem: what is wrong with it.
        """
        with self._locked():
            if self._is_in_place():
                self._clear(problem)
            self._reopen()

    def find_damage(self, expectation: str) -> str | None:
        """Read all of the file, on a connection of its own, and return what is wrong with it; None if nothing is.

        It takes time that grows with the file, and may be called on any thread.

        Args:
            expectation: a query whose only value is 1 if what the schema cannot guarantee holds.
        """
        try:
            with contextlib.closing(sqlite3.connect(":memory:")) as model:
                model.executescript(self._schema)
                schema = _read_schema(model)
            with contextlib.closing(_connect(self._path)) as database:
                if (problem := database.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
                    return str(problem)
                if _read_schema(database) != schema:
                    return "its schema is not the one that it was made with"
                if database.execute(expectation).fetchone() != (1,):
                    return "what is derived from its rows does not fit them"
        except _ERRORS as error:
            if not self._path.exists():
                return "it was deleted"
            if not self._shows_damage(error):
                raise self._failure(error) from error
            return str(error)
        return None

    def _failure(self, error: Exception) -> CatalogFailed:
        if _primary_code(error) == sqlite3.SQLITE_BUSY:
            return CatalogBusy(self._path, _BUSY_SECONDS)
        return CatalogFailed(self._path, str(error))

    def _shows_damage(self, error: Exception) -> bool:
        """Return whether an error comes from what is in the file, or from what has taken its place."""
        if any(path.is_dir() for path in self._files()):
            return True
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:  # the module's own: a row with a text that is not UTF-8 is an OperationalError
            return isinstance(error, sqlite3.OperationalError | UnicodeDecodeError)
        if code == sqlite3.SQLITE_READONLY:  # so says the file's header, where the file system does not
            return os.access(self._path, os.W_OK)
        return code in _UNREADABLE or _primary_code(error) not in _SOUND

    def _is_in_place(self) -> bool:
        """Return whether the file at the path is the one that is open; no other has its inode number for so long."""
        try:
            return self._opened is not None and os.path.samestat(os.stat(self._path), self._opened)
        except FileNotFoundError:
            return False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the other processes from opening or replacing the file.

        Raises:
            CatalogBusy: another process holds the lock for too long.
        """
        path = self._path.with_suffix(".lock")
        if path.is_dir():
            path.rmdir()
        with open(path, "wb", opener=private) as lock:
            os.fchmod(lock.fileno(), 0o600)  # a process that may read it may hold it, and the daemon up (flock(2))
            try:
                lock_within(lock.fileno(), path, _LOCK_SECONDS)
            except LockHeld as error:
                raise CatalogBusy(self._path, _LOCK_SECONDS, str(error.strerror)) from error
            yield

    def _reopen(self) -> None:
        """Open what is at the path, instead of what was there."""
        self._leave()
        self._database = self._open()

    def _leave(self) -> None:
        """Close the connection to a file that has been replaced.

        If that file was emptied, SQLite does not see that it was replaced, and removes the log of the new one
        (databaseIsUnmoved() in pager.c), with all that other processes have written. Then there is another new one.
        """
        self._opened = None
        logged = self._identify_log()
        self._database.close()
        if self._identify_log() != logged:
            self._clear("its write-ahead log was removed")

    def _identify_log(self) -> int | None:
        """Return the inode of the write-ahead log at the path; None if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(f"{self._path}-wal").st_ino
        return None

    def _open(self) -> sqlite3.Connection:
        """Open what is at the path, or a new file if that is damaged or is not one of ours."""
        database = None
        try:
            if self._path.is_file():
                try:
                    database = self._open_present()
                except _ERRORS as error:
                    if not self._shows_damage(error):
                        raise
                    self._clear(str(error))
            if database is None:
                database = self._make()
        except _ERRORS as error:
            raise self._failure(error) from error
        self._opened = os.stat(self._path)
        self.generation += 1
        return database

    def _open_present(self) -> sqlite3.Connection | None:
        """Open the file at the path; return None if it is of another version."""
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(contextlib.closing(_connect(self._path)))
            if database.execute("PRAGMA user_version").fetchone()[0] not in self._versions:
                return None
            _set_up(database)
            stack.pop_all()
            return database

    def _make(self) -> sqlite3.Connection:
        """Make a file. It has another inode than the one before, which may be in use, and locked."""
        self._clear()
        self._path.touch(mode=0o600)
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(contextlib.closing(_connect(self._path)))
            _set_up(database)
            database.executescript(self._schema)
            stack.pop_all()
            return database

    def _clear(self, problem: str = "") -> None:
        """Remove the file with its companions (sqlite.org/tempfiles.html).

        Args:
            problem: what is wrong with the file, if something is.
        """
        if problem:
            log.error("the catalogue is damaged and is made again", path=str(self._path), error=problem)
        for path in self._files():
            _delete(path)

    def _files(self) -> list[Path]:
        """Return the path of the file, and those of its companions."""
        return [self._path.with_name(self._path.name + suffix) for suffix in ("", "-wal", "-shm")]


def _delete(path: Path) -> None:
    """Remove a file, or an empty folder in its place."""
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        path.rmdir()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", isolation_level=None, timeout=_BUSY_SECONDS, uri=True)


def _set_up(database: sqlite3.Connection) -> None:
    # What a power cut takes from it, the folders give back: no transaction needs to wait for the disk.
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")


def _primary_code(error: Exception) -> int:
    """Return the low byte of an error's code, which is the primary one (sqlite.org/rescode.html)."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _read_schema(database: sqlite3.Connection) -> list[tuple[str, str]]:
    return database.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
