"""What the daemon shows and whom it trusts: certificates, read anew whenever their files change."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from pki.errors import CertificateExpired, CertificateRefused, CertificateRevoked, PkiError
from pki.files import load_certificate, read_bytes, stamp
from pki.identity import Identity, read_identity
from pki.revocation import CrlVersion, serials_on, version_of
from pki.store import PkiFolder
from pki.tls import ExchangeableContext, server_context
from workerd.access.expiry import CallerWarnings
from workerd.access.following import follow_folder
from workerd.access.newest_list import NewestList
from workerd.errors import shortage_of

log = structlog.get_logger()
_LOOK_SECONDS = 5.0  # clocks are set, and machines sleep: no timer is trusted for longer


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The files as they were at a time; two are equal if they say the same."""

    server_certificate: bytes
    client_ca: bytes
    trust_domain: str
    revoked: frozenset[int]
    crl: CrlVersion | None
    context: ssl.SSLContext = field(compare=False)


@dataclass(eq=False, slots=True)
class _Use:
    """A connection or a call that ends when its certificate is revoked or expires.

    Attributes:
        end: called once, with the reason.
        refusal: the reason, once `end` was called.
        timer: of the next check.
    """

    caller: Identity
    end: Callable[[CertificateRefused], None]
    refusal: CertificateRefused | None = None
    timer: asyncio.TimerHandle | None = None


class Credentials:
    """The certificates of a folder, as they were when they were last good.

    Args:
        folder: where they are.
        newest: remembers the newest list of revoked certificates.

    Attributes:
        context: for the listening socket. Handshakes go by what is current when they begin.

    Raises:
        PkiError: they cannot be used.
    """

    def __init__(self, folder: PkiFolder, newest: NewestList) -> None:
        self.context = ExchangeableContext(ssl.PROTOCOL_TLS_SERVER)
        self._folder = folder
        self._newest = newest
        self._uses: set[_Use] = set()
        self._warnings = CallerWarnings()
        self._problem = ""  # that was told last, and still is there
        self._keeping_problem = ""
        self._seen = self._look()
        self._use(self._load())
        self._keep_list()

    @property
    def trust_domain(self) -> str:
        """The one that callers must be of."""
        return self._loaded.trust_domain

    def identify(self, certificate: Mapping[str, Any]) -> Identity:
        """Return the user of a certificate, whether or not it is still valid.

        Args:
            certificate: as `ssl.SSLSocket.getpeercert` returns it.

        Raises:
            IdentityInvalid: it names no user.
        """
        return read_identity(certificate, self.trust_domain)

    def watch(self, caller: Identity, end: Callable[[CertificateRefused], None]) -> Callable[[], None]:
        """Call a function once the caller's certificate is revoked or has expired, at once if it already is.

        Args:
            end: the function; it takes the reason.

        Returns:
            A function that ends the watch.
        """
        use = _Use(caller, end)
        self._uses.add(use)
        self._look_at(use)

        def release() -> None:
            self._uses.discard(use)
            if use.timer is not None:
                use.timer.cancel()

        return release

    @contextlib.contextmanager
    def admit(self, caller: Identity) -> Iterator[None]:
        """Let the current task serve a call for as long as the caller's certificate counts; TLS has verified it once.

        Raises:
            CertificateRevoked, CertificateExpired: it does not count, from the beginning or any more; the task was
                cancelled then.
        """
        self._check(caller)
        self._warnings.look(caller)
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a call is served outside of any task")
        cancelling, refusals = task.cancelling(), list[CertificateRefused]()

        def end(refusal: CertificateRefused) -> None:
            refusals.append(refusal)
            task.cancel()

        release = self.watch(caller, end)
        try:
            yield
        except asyncio.CancelledError:
            if not refusals or task.uncancel() > cancelling:  # as asyncio.timeout does
                raise
            raise refusals[0] from None
        finally:
            release()

    def _look_at(self, use: _Use) -> None:
        """End a use of a certificate that is not valid any more; otherwise schedule the next check."""
        if use.timer is not None:
            use.timer.cancel()
        try:
            self._check(use.caller)
        except CertificateRefused as refusal:
            if use.refusal is None:
                use.refusal = refusal
                use.end(refusal)
        else:
            left = (use.caller.expires_at - datetime.now(UTC)).total_seconds()
            seconds = min(max(left, 0.0), _LOOK_SECONDS)
            use.timer = asyncio.get_running_loop().call_later(seconds, self._look_at, use)

    def _check(self, caller: Identity) -> None:
        # With a certificate go all that descend from it.
        if any(int(serial, 16) in self._loaded.revoked for serial in (caller.serial, *caller.ancestors)):
            raise CertificateRevoked
        if datetime.now(UTC) >= caller.expires_at:
            raise CertificateExpired

    async def follow(self) -> None:
        """Take up what changes in the folder, until cancelled. What is bad is told, and what was good stays."""
        await follow_folder(self._folder.path, self._reload)

    def _reload(self) -> bool:
        """Take up the files that are there; return whether nothing was lacking for that."""
        seen = self._look()
        if seen == self._seen:
            return True
        try:
            loaded = self._load()
        except PkiError as error:
            is_bad = shortage_of(error) is None
            if is_bad:
                self._seen = seen
            if str(error) != self._problem:
                log.error("certificates were changed and cannot be used; those from before stay", error=str(error))
            self._problem = str(error)
            return is_bad
        if loaded != self._loaded:
            log.info(
                "certificates were changed and are used from now on",
                folder=str(self._folder.path),
                changed=self._changes(loaded),
                revoked=len(loaded.revoked),
                pardoned=len(self._loaded.revoked - loaded.revoked),
            )
        elif self._problem:
            log.info("certificates are as they were, and in use as before", folder=str(self._folder.path))
        self._problem = ""
        self._use(loaded)
        for use in list(self._uses):
            self._look_at(use)
        if not self._keep_list():
            return False
        self._seen = seen  # at the end: what fails until then is made again
        return True

    def _use(self, loaded: _Loaded) -> None:
        self._loaded = loaded
        self.context.current = loaded.context

    def _keep_list(self) -> bool:
        """Remember the list that is in use; return whether that could be done."""
        if self._loaded.crl is None:
            return True
        try:
            self._newest.keep(self._loaded.crl)
        except (OSError, PkiError) as error:
            if str(error) != self._keeping_problem:
                log.error("which list of revoked certificates is the newest cannot be written down", error=str(error))
            self._keeping_problem = str(error)
            return False
        self._keeping_problem = ""
        return True

    def _load(self) -> _Loaded:
        authority, crl = load_certificate(self._folder.client_ca), self._folder.crl()
        self._newest.require(self._folder.client_crl, crl, authority)
        return _Loaded(
            read_bytes(self._folder.server_certificate, "put it back"),
            read_bytes(self._folder.client_ca, "put it back"),
            self._folder.trust_domain(),
            frozenset() if crl is None else serials_on(crl),
            None if crl is None else version_of(crl, authority),
            server_context(self._folder),
        )

    def _changes(self, loaded: _Loaded) -> list[str]:
        """Name the files that say something else than those that are in use."""
        was, folder = self._loaded, self._folder
        is_changed = {
            folder.server_certificate: loaded.server_certificate != was.server_certificate,
            folder.client_ca: loaded.client_ca != was.client_ca,
            folder.client_crl: loaded.crl != was.crl,
        }
        return [path.name for path, changed in is_changed.items() if changed]

    def _look(self) -> list[tuple[int, ...] | None]:
        """Tell the files apart from others that take their place, without reading them."""
        return [stamp(path) for path in self._folder.files_of_server]
