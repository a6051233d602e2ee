"""TLS contexts: version 1.3 only, both sides with certificates, HTTP/2 negotiated (RFC 9113 §3.2)."""

import os
import shlex
import ssl
from pathlib import Path
from typing import Any

from pki.errors import Missing
from pki.files import key_path, new_key_path, read_bytes, require_trusted
from pki.store import PkiFolder

_MOST_PASSED_OVER = 3  # reads, which are kept in memory: a request comes in fewer


class _TellingWhy(ssl.SSLObject):
    """A server's end of a connection, from which a client that is refused learns why.

    OpenSSL has an alert ready when a handshake fails (RFC 8446 §6.2), but asyncio and uvloop drop it with the
    connection (`SSLProtocol._on_handshake_complete`), and to the client that looks like any cut. As long as they are
    told that more is to come they send what is ready. The end is the client's, or that of the time for handshakes; what
    it has sent meanwhile is passed over, for a while: a client that finds the connection closed when it sends has no
    eyes for the alert any more.
    """

    _failure: ssl.SSLError | None = None
    _passed_over = 0

    def do_handshake(self) -> None:
        """Take the handshake as far as it goes.

        Raises:
            ssl.SSLWantReadError: more must come; or the handshake has just failed.
            ssl.SSLError: the handshake has failed.
        """
        if self._failure is not None:
            self._passed_over += 1
            if self._passed_over > _MOST_PASSED_OVER:
                raise self._failure
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the handshake has failed")
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self._failure = error
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the handshake failed") from error


class ExchangeableContext(ssl.SSLContext):
    """A server's context that stands for another, which can be exchanged while the server listens.

    A connection keeps the context that was current when it began. asyncio and uvloop both make the server's end of each
    connection with `wrap_bio`.

    Attributes:
        current: the context that handshakes use.
    """

    current: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection in the current context."""
        return self.current.wrap_bio(*arguments, **options)


def server_context(folder: PkiFolder) -> ssl.SSLContext:
    """Make the context of a server that takes only clients with a certificate of the client authority, not revoked.

    Raises:
        Missing: a file cannot be read.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _TellingWhy
    _trust(context, folder.client_ca)
    if os.path.lexists(folder.client_crl):
        _trust(context, folder.client_crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    # A session that is resumed is not verified again (RFC 8446 §4.6.1), neither for its time nor against the list.
    context.num_tickets = 0
    _present(context, folder.server_certificate, "put it back, or choose another --pki-dir")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: PkiFolder, user_name: str) -> ssl.SSLContext:
    """Make the context of a client that presents a user's certificate and takes only the server authority's servers.

    Raises:
        Missing: a file cannot be read.
        InvalidName: no user could have this name.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    certificate = folder.client_certificate(user_name)
    _present(context, certificate, _advice_for_user(folder, user_name))
    _trust(context, folder.server_ca)
    return context


def _advice_for_user(folder: PkiFolder, user_name: str) -> str:
    if not folder.path.is_dir():
        return f"there is no folder {folder.path}; choose another with --pki-dir"
    if users := folder.users():
        return (
            f"{folder.path} has certificates for {', '.join(users)}; choose with --username or --pki-dir, or add"
            f" --certificate {users[0]} to present {users[0]}'s, whomever you call for"
        )
    advice = "copy yours from the daemon's machine, or choose another --pki-dir"
    if (authority := folder.authority_named()) is not None:
        clients = folder.path / "clients"
        advice = f"copy yours from {authority / 'clients'} to {clients}, or choose --pki-dir {authority}"
    elif key_path(folder.client_ca).exists():
        advice = f"make one with `workerctl --pki-dir {shlex.quote(str(folder.path))} pki issue-client {user_name}`"
    return f"{folder.path} has no certificate for any user; {advice}"


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    # The one group that every implementation has (RFC 8446 §9.1). OpenSSL also accepts ffdhe8192 by default, which lets
    # a client without a certificate cost the daemon a tenth of a second with every ClientHello.
    context.set_ecdh_curve("prime256v1")
    return context


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    require_trusted(authority)
    try:
        context.load_verify_locations(cafile=authority)
    except OSError as error:  # ssl.SSLError is one
        raise Missing(authority, error.strerror or str(error), "copy it from the daemon's machine") from error


def _present(context: ssl.SSLContext, certificate: Path, advice: str) -> None:
    key = key_path(certificate)
    read_bytes(certificate, advice)
    read_bytes(key, f"{certificate.name} is there and needs its key beside it: copy it from where both were made")
    failure: OSError | None = None

    def refuse_to_ask() -> bytes:
        raise Missing(key, "it is encrypted", "put one there that is not, as `openssl pkey` makes it")

    for candidate in (key, new_key_path(certificate), key):  # the pair may just be being replaced (`pki.files`)
        require_trusted(candidate)
        try:
            context.load_cert_chain(certificate, candidate, refuse_to_ask)
        except FileNotFoundError as error:
            failure = failure or error
        except ssl.SSLError as error:
            failure = error
        except OSError as error:
            problem = f"it, or {key.name} beside it, cannot be read: {error.strerror or error}"
            raise Missing(certificate, problem, advice) from error
        else:
            return
    if isinstance(failure, ssl.SSLError) and failure.reason == "KEY_VALUES_MISMATCH":
        raise Missing(certificate, "it does not fit its key", "copy both from where they were made") from failure
    problem = f"it is damaged, or {key.name} beside it is"
    raise Missing(certificate, problem, "copy both from where they were made") from failure
