"""The users that a daemon has seen: what their ids are called.

A user is an id, and the name in a certificate is for people. A caller may refer to another user by name if the daemon
has seen exactly one user with that name. Only callers who may act for any user learn whether it has.
"""

import contextlib
import os
import threading
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from pki.identity import is_user_id
from workerd.engine.files import private
from workerd.engine.job import Share, User
from workerd.errors import UserUnknown

log = structlog.get_logger()
LONGEST_NAME = 64  # of a certificate's common name (RFC 5280 A.1, ub-common-name)
_TICK_NS = 1_000_000_000  # the coarsest that a file system keeps times in (inode(7), utimensat(2))


def known_by(user: User) -> tuple[str, ...]:
    """Return how the configuration may refer to a user: by the id, then by the name.

    A name that looks like an id is left out, so that it never refers to another user than the one with the id.
    """
    return (user.id,) if is_user_id(user.name) else (user.id, user.name)


@dataclass(frozen=True, slots=True)
class _File:
    """A user's file: when it was made, and the name in it."""

    stamp: tuple[int, int]
    name: bytes


class Users:
    """Remembers users in a folder, one file for each: the id is the file's name, and the user's name is in it.

    All names are held in memory. Other processes add users to the same folder: its modification time tells when.
    Several threads may use it: those that change shares call `bind`.

    Args:
        folder: made when the first user comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._noted: dict[str, str] = {}
        self._files: dict[str, _File] = {}
        self._ids: dict[bytes, set[str]] = {}
        self._changed_ns = -1
        self._refreshing = threading.Lock()
        self._refresh()

    def note(self, user: User) -> None:
        """Remember what a user is called now."""
        if self._noted.get(user.id) == user.name:
            return
        name = user.name.encode()
        path = self._folder / user.id
        try:
            if not path.exists() or path.read_bytes() != name:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                new = self._folder / f".{user.id}.{os.getpid()}"
                with open(new, "wb", opener=private) as file:
                    file.write(name)
                    file.flush()
                    os.fsync(file.fileno())  # or a power cut could leave an empty name
                new.rename(path)
        except OSError as error:  # others may have to give the id instead, and everything else is served
            log.error("a user cannot be found by their name yet", user=user.name, error=str(error))
        else:
            self._noted[user.id] = user.name

    def find(self, text: str) -> User:
        """Find the user whom an id or a name means; an id may be that of a user who has not been here.

        Raises:
            UserUnknown: no user, or several, have this name.
        """
        if is_user_id(text):
            return self.renamed([User(text, text)])[0]
        self._refresh()
        found = sorted(self._ids.get(text.encode(), ()))
        if len(found) != 1:
            raise UserUnknown(text, found)
        return User(found[0], text)

    def meant(self, text: str) -> User:
        """Return the user whom an id or a name means, with that text as the name.

        The user has no id if the text is the name of no user who has been here yet, or of several.
        """
        self._refresh()
        return self._bind(User(text if is_user_id(text) else "", text))

    def bind(self, shares: tuple[Share, ...]) -> tuple[Share, ...]:
        """Return shares with the id of each user that has none, where `meant` finds it now."""
        if all(share.user.id for share in shares):
            return shares
        self._refresh()
        return tuple(Share(self._bind(share.user), share.rights) for share in shares)

    def granted(self, shares: tuple[Share, ...], user_ids: Collection[str]) -> frozenset[tuple[str, str]]:
        """Return the rights that shares give some users, as pairs of a user's id and a right.

        It gives the same as `bind` does for these users, and takes less time where a job has many shares.
        """
        alone = dict[bytes, str]()  # the users who have a name that nobody else has
        if not all(share.user.id for share in shares):
            self._refresh()
            for user_id in user_ids:
                file = self._files.get(user_id)
                if file is not None and len(self._ids.get(file.name, ())) == 1:
                    alone[file.name] = user_id
        return frozenset(
            (user_id, right)
            for share in shares
            if (user_id := share.user.id or alone.get(share.user.name.encode(), "")) in user_ids
            for right in share.rights
        )

    def renamed(self, users: Iterable[User]) -> list[User]:
        """Return users with the names that they had when they were last here."""
        self._refresh()
        return [self._rename(user) for user in users]

    def _rename(self, user: User) -> User:
        file = self._files.get(user.id)
        return user if file is None else User(user.id, file.name.decode(errors="replace"))

    def _bind(self, user: User) -> User:
        if user.id:
            return user
        found = self._ids.get(user.name.encode(), set())
        return User(next(iter(found)), user.name) if len(found) == 1 else user

    def _refresh(self) -> None:
        """Read the files that are new or were replaced since the last time, if the folder has changed at all."""
        try:
            changed_ns = os.stat(self._folder).st_mtime_ns
        except OSError:  # `note` reports a folder that cannot be used
            return
        if changed_ns == self._changed_ns:
            return
        with self._refreshing:
            self._read(changed_ns)

    def _read(self, changed_ns: int) -> None:
        """Read the files that are new or were replaced; the folder was changed at this time, or since."""
        # The clock of the file system ticks slowly: what changes again within a tick leaves the same time.
        settled = abs(time.time_ns() - changed_ns) > _TICK_NS
        gone = set(self._files)
        with contextlib.suppress(NotADirectoryError), os.scandir(self._folder) as entries:
            for entry in entries:
                if is_user_id(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        self._take(entry)
                        gone.discard(entry.name)
        for user_id in gone:
            self._forget(user_id)
        self._changed_ns = changed_ns if settled else -1

    def _take(self, entry: os.DirEntry[str]) -> None:
        status = entry.stat()
        stamp = (status.st_ino, status.st_mtime_ns)
        known = self._files.get(entry.name)
        if known is not None and known.stamp == stamp:
            return
        self._forget(entry.name)
        if status.st_uid not in (0, os.geteuid()):
            log.error("the name of a user is not believed: remove the file", file=entry.path, owner=status.st_uid)
            return
        file = self._files[entry.name] = _File(stamp, Path(entry.path).read_bytes())
        self._ids.setdefault(file.name, set()).add(entry.name)

    def _forget(self, user_id: str) -> None:
        if (file := self._files.pop(user_id, None)) is None:
            return
        ids = self._ids[file.name]
        ids.discard(user_id)
        if not ids:
            del self._ids[file.name]
