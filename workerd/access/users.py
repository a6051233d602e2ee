"""The users that a daemon has seen: what their ids are called.

A user is an id, and the name in a certificate is for people. Whoever names somebody else, to share a job with them or
to act for them, may give the name if the daemon has seen exactly one user whom it means.
"""

import os
from pathlib import Path

import structlog

from pki.identity import is_user_id
from workerd.engine.job import User
from workerd.errors import UserUnknown

log = structlog.get_logger()


class Users:
    """Remembers users in a folder, one file for each: the id is the file's name, and the user's name is in it.

    Args:
        folder: made when the first user comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._noted: dict[str, str] = {}

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
                with new.open("wb") as file:
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
            path = self._folder / text
            return User(text, path.read_bytes().decode(errors="replace") if path.exists() else text)
        paths = self._folder.iterdir() if self._folder.exists() else ()
        found = sorted(path.name for path in paths if is_user_id(path.name) and path.read_bytes() == text.encode())
        if len(found) != 1:
            raise UserUnknown(text, found)
        return User(found[0], text)
