"""Assembling the daemon: certificates, engine, handlers, socket; serving; and ending without harm to any job."""

import asyncio
import contextlib
import fcntl
import getpass
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog

from pki.store import PkiFolder
from pki.tls import server_context
from workerd.codec import Codec, StatusDetailsCodec
from workerd.engine.engine import Engine
from workerd.errors import CannotListen
from workerd.gate import Gate
from workerd.registry import load_routes
from workerd.settings import Settings
from workerd.transport import WorkerServer

log = structlog.get_logger()
_BACKLOG = 512
_CLOSE_SECONDS = 5.0


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        CannotListen: the address cannot be listened on.
        PluginInvalid: a handler cannot be served.
        PkiError: the certificates cannot be read or made.
        StateDirectoryInUse: another daemon holds the state directory.
    """
    routes = load_routes()
    settings.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = _prepare_certificates(settings)
    tls = server_context(folder)
    stop = _stop_signals()
    async with Engine(settings.state_directory, settings.storage) as engine:
        _raise_descriptor_limit()
        gate = Gate(engine, routes, trust_domain=folder.trust_domain(), grace_seconds=settings.grace_seconds)
        server = WorkerServer(
            [gate],
            codec=Codec(),
            status_details_codec=StatusDetailsCodec(),
            keepalive_seconds=settings.keepalive_seconds,
        )
        with _listen(settings) as listening:
            await server.start(sock=listening, ssl=tls)
            host, port = listening.getsockname()[:2]
            with _advertise(settings.state_directory, host, port):
                address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
                print(f"serving gRPC endpoint at {address}", flush=True)  # noqa: T201
                await stop.wait()
            log.info("shutting down; jobs run on")
            await gate.close(_CLOSE_SECONDS)
            server.close()


def _prepare_certificates(settings: Settings) -> PkiFolder:
    folder = PkiFolder(settings.pki_directory)
    if not folder.is_initialized():
        user = _own_name()
        folder.initialize(users=[user])
        certificate = str(folder.client_certificate(user))
        log.info("made certificates", folder=str(folder.path), user=user, certificate=certificate)
    return folder


def _own_name() -> str:
    """Tell the name of the daemon's user, for a certificate; the number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # whichever it is: both are documented, for different versions of Python
        return str(os.getuid())


def _stop_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@contextlib.contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise CannotListen(settings.host, settings.port, error.strerror or str(error)) from error
    with listening:
        yield listening


@contextlib.contextmanager
def _advertise(state_directory: Path, host: str, port: int) -> Iterator[None]:
    """Leave a note of where the daemon is for the clients of the same user on this machine."""
    note = state_directory / "endpoint"
    local = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host  # noqa: S104
    new = note.with_suffix(".new")
    with new.open("w") as file:
        # Held for as long as this process lives: a note that nobody holds is a dead daemon's.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"https://{f'[{local}]' if ':' in local else local}:{port}\n")
        file.flush()
        new.rename(note)
        try:
            yield
        finally:
            note.unlink(missing_ok=True)


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as are allowed: each follower needs two. Jobs keep what the daemon started with."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
