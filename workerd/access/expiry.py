"""Warnings of certificates that are about to expire: one line a day for each."""

import asyncio
from datetime import UTC, date, datetime

import structlog

from pki.errors import PkiError
from pki.files import load_certificate
from pki.identity import Identity, expires_soon
from pki.store import PkiFolder

log = structlog.get_logger()
_DAY_SECONDS = 86_400.0
_MOST_CALLERS = 1000


async def remind(folder: PkiFolder) -> None:
    """Warn once a day, for as long as it is so, that the daemon's own certificate is about to expire."""
    while True:
        try:
            expires_at = load_certificate(folder.server_certificate).not_valid_after_utc
        except PkiError as error:
            log.warning("nobody can tell when the daemon's certificate expires", error=str(error))
        else:
            if expires_soon(expires_at, datetime.now(UTC)):
                log.warning(
                    "the daemon's certificate is about to expire: renew it with `workerctl pki renew server`",
                    expires_at=expires_at.isoformat(),
                )
        await asyncio.sleep(_DAY_SECONDS)


class CallerWarnings:
    """Warns of callers' certificates, of a thousand a day at most."""

    def __init__(self) -> None:
        self._day = date.min
        self._told: set[str] = set()

    def look(self, caller: Identity) -> None:
        """Warn if a caller's certificate is about to expire and nobody was told today."""
        now = datetime.now(UTC)
        if caller.rights is not None or not expires_soon(caller.expires_at, now):
            return  # a narrowed certificate is short-lived on purpose
        if now.date() != self._day:
            self._day = now.date()
            self._told.clear()
        if caller.serial in self._told or len(self._told) >= _MOST_CALLERS:
            return
        self._told.add(caller.serial)
        log.warning(
            "a user's certificate is about to expire",
            user=caller.name,
            serial=caller.serial,
            expires_at=caller.expires_at.isoformat(),
        )
