"""What the daemon shows and whom it trusts: certificates, read anew whenever their files change."""

import asyncio
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from asyncinotify import Mask

from pki.errors import PkiError
from pki.files import read_bytes
from pki.store import PkiFolder
from pki.tls import ExchangeableContext, server_context
from workerd.engine.errors import WatchesExhausted
from workerd.engine.watcher import Watcher

log = structlog.get_logger()
# Links and folders that are made, files that become readable, and what goes without anything in its place.
_ALSO = Mask.CREATE | Mask.ATTRIB | Mask.DELETE | Mask.MOVED_FROM


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The files as they were at a time; two are equal if they say the same."""

    server_certificate: bytes
    client_ca: bytes
    trust_domain: str
    context: ssl.SSLContext = field(compare=False)


class Credentials:
    """The certificates of a folder, as they were when they were last good.

    Args:
        folder: where they are.

    Attributes:
        context: for the listening socket. Handshakes go by what is current when they begin; connections stay.

    Raises:
        PkiError: they cannot be used.
    """

    def __init__(self, folder: PkiFolder) -> None:
        self.context = ExchangeableContext(ssl.PROTOCOL_TLS_SERVER)
        self._folder = folder
        self._seen = self._look()
        self._use(self._load())

    @property
    def trust_domain(self) -> str:
        """The one that callers must be of."""
        return self._loaded.trust_domain

    async def follow(self) -> None:
        """Take up what changes in the folder, until cancelled. What is bad is told, and what was good stays."""
        try:
            with Watcher(_ALSO) as watcher:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(watcher.run())
                    tasks.create_task(self._follow(watcher))
        except* (OSError, WatchesExhausted) as problems:
            problem = str(problems.exceptions[0])
            log.error("certificates that change are not noticed until the next start", error=problem)

    async def _follow(self, watcher: Watcher) -> None:
        while True:
            try:
                with watcher.watch(_nearest(self._folder.path)) as changed:
                    self._reload()
                    await changed.wait()
            except FileNotFoundError:  # the folder went just now: another is the nearest
                continue

    def _reload(self) -> None:
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            loaded = self._load()
        except PkiError as error:
            log.error("certificates were changed and cannot be used; those from before stay", error=str(error))
            return
        if loaded != self._loaded:
            log.info("certificates were changed and are used from now on", folder=str(self._folder.path))
        self._use(loaded)

    def _use(self, loaded: _Loaded) -> None:
        self._loaded = loaded
        self.context.current = loaded.context

    def _load(self) -> _Loaded:
        return _Loaded(
            read_bytes(self._folder.server_certificate, "put it back"),
            read_bytes(self._folder.client_ca, "put it back"),
            self._folder.trust_domain(),
            server_context(self._folder),
        )

    def _look(self) -> list[tuple[int, ...] | None]:
        """Tell the files apart from others that take their place, without reading them."""
        return [_look(path) for path in self._folder.files_of_server]


def _look(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:  # why it cannot be read is told when it is
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def _nearest(folder: Path) -> Path:
    """Give a folder, or as long as it is not there the nearest of those in which it would be."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
