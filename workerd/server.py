"""Assembling the daemon: certificates, engine, handlers, socket; serving; and ending without harm to any job."""

import asyncio
import contextlib
import fcntl
import getpass
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from pki.store import PkiFolder
from workerd.access.caller import Record
from workerd.access.credentials import Credentials
from workerd.access.expiry import remind
from workerd.access.rights import Rights
from workerd.access.users import Users
from workerd.engine.account import find_account, own_account
from workerd.engine.engine import Engine
from workerd.engine.folder import private
from workerd.errors import CannotListen
from workerd.gate import Gate
from workerd.handler import Daemon
from workerd.limits import Meter
from workerd.network.codec import Codec, StatusDetailsCodec
from workerd.network.connection import Surroundings
from workerd.network.transport import WorkerServer
from workerd.notices import Notices
from workerd.registry import Route, load_routes, rights_of
from workerd.settings import Settings
from workerd.trail.events import JobEvents, noting_service
from workerd.trail.writer import AuditTrail

log = structlog.get_logger()
_BACKLOG = 512
_CLOSE_SECONDS = 5.0
LAST_READERS_SECONDS = 30.0


async def serve(settings: Settings) -> None:
    """Serve in this process until SIGTERM or SIGINT, or until a drain is over.

    Raises:
        AccountUnusable: jobs cannot run as the account that is set.
        CannotListen: the address cannot be listened on.
        PluginInvalid: a handler cannot be served.
        PolicyInvalid: the policies cannot be used.
        PkiError: the certificates cannot be read or made.
        StateDirectoryInUse: another daemon holds the state directory.
    """
    routes = load_routes()
    prepare(settings)
    stop = stop_signals()
    async with telling_engine(settings) as (engine, trail):
        if engine.keeper is None:
            raise AssertionError("an engine that serves alone has a keeper")
        with listen(settings) as listening, noting_service(trail, settings.processes):
            async with (
                meanwhile(remind(PkiFolder(settings.pki_directory))),
                answering(engine, settings, routes, listening, trail.record) as gate,
            ):
                warn_of_account(settings)
                with advertise(settings.state_directory, listening):
                    drained = await wait_first(stop.wait(), engine.keeper.wait_drained()) == 1
                if drained:
                    log.info("drained: no job is left")
                    await wait_first(stop.wait(), gate.wait_idle(LAST_READERS_SECONDS))
                else:
                    log.info("shutting down; jobs run on")


@contextlib.asynccontextmanager
async def telling_engine(settings: Settings, *, keeps: bool = True) -> AsyncIterator[tuple[Engine, AuditTrail]]:
    """Run an engine that tells the audit trail of its jobs. It is as `Engine` has it."""
    with AuditTrail(settings.audit_directory, settings.max_audit_bytes) as trail:
        events = JobEvents(trail)
        engine = Engine(
            settings.state_directory,
            settings.storage,
            limits=settings.limits.for_jobs(),
            keeps=keeps,
            on_end=events.ended,
            on_remove=events.removed,
        )
        async with engine:
            yield engine, trail


@contextlib.asynccontextmanager
async def answering(
    engine: Engine, settings: Settings, routes: Mapping[str, Route], listening: socket.socket, record: Record
) -> AsyncIterator[Gate]:
    """Answer calls on a listening socket; at the end, those that are under way are ended with UNAVAILABLE."""
    pki = PkiFolder(settings.pki_directory)
    credentials = Credentials(pki)
    rights = Rights(settings.policy_directory, settings.roles, rights_of(routes.values()))
    daemon = Daemon(engine, Users(settings.state_directory / "users"), pki, settings.grace_seconds, settings.run_as)
    meter, notices = Meter(settings.limits), Notices()
    gate = Gate(daemon, routes, credentials, rights, record, meter, notices)
    server = WorkerServer(
        [gate],
        codec=Codec(),
        status_details_codec=StatusDetailsCodec(),
        around=Surroundings(settings.keepalive_seconds, meter, notices, credentials.user_of),
    )
    _raise_descriptor_limit()
    server.serve(listening, credentials.context)
    try:
        async with meanwhile(credentials.follow()), meanwhile(rights.follow()):
            yield gate
    finally:
        await gate.close(_CLOSE_SECONDS)
        server.close()


@contextlib.asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have something done for as long as the context lasts. What it fails with is raised at the end of that."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


def prepare(settings: Settings) -> None:
    """Make the state directory, and certificates where there are none, and see whether jobs can run as they are to.

    Raises:
        AccountUnusable: they cannot.
        PkiError: the certificates cannot be read or made.
    """
    if settings.run_as:
        find_account(settings.run_as)
    settings.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = PkiFolder(settings.pki_directory)
    if not folder.is_initialized():
        user = _own_name()
        folder.initialize(users=[user])
        certificate = str(folder.client_certificate(user))
        log.info("made certificates", folder=str(folder.path), user=user, certificate=certificate)


def warn_of_account(settings: Settings) -> None:
    """Say what may surprise of the account that jobs run as, unless they name another."""
    account = (find_account(settings.run_as) if settings.run_as else None) or own_account()
    if account.uid == 0 and not settings.run_as:
        log.warning(
            "jobs run as root, and who may start one is as good as root: name an account with --run-as, or root if"
            " that is meant"
        )
    if not os.path.isdir(account.home):
        log.warning(
            "the account that jobs run as has no home directory: they cannot start without --working-directory",
            account=account.name,
            home=account.home,
        )


def _own_name() -> str:
    """Tell the name of the daemon's user, for a certificate; the number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # whichever it is: both are documented, for different versions of Python
        return str(os.getuid())


def stop_signals() -> asyncio.Event:
    """Give an event that SIGTERM and SIGINT set."""
    return signal_event(signal.SIGTERM, signal.SIGINT)


def signal_event(*numbers: signal.Signals) -> asyncio.Event:
    """Give an event that each of some signals sets."""
    event = asyncio.Event()
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


async def wait_first(*waits: Awaitable[object]) -> int:
    """Wait until one of several things has come about, or failed, and leave the others.

    Returns:
        Which one: its position among the arguments.
    """
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    for task in done:
        task.result()
    return next(number for number, task in enumerate(tasks) if task in done)


@contextlib.contextmanager
def listen(settings: Settings, *, shared: bool = False) -> Iterator[socket.socket]:
    """Listen on the address of the settings.

    Args:
        shared: whether other processes listen there as well (socket(7), SO_REUSEPORT).

    Raises:
        CannotListen: it cannot be.
    """
    with bind(settings, shared=shared) as listening:
        try:
            listening.listen(_BACKLOG)
        except OSError as error:
            raise _cannot_listen(settings, error) from error
        yield listening


def bind(settings: Settings, *, shared: bool) -> socket.socket:
    """Take the address of the settings, without listening.

    Raises:
        CannotListen: it cannot be.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise _cannot_listen(settings, error) from error
    return bound


def _cannot_listen(settings: Settings, error: OSError) -> CannotListen:
    """Say that an address cannot be listened on."""
    return CannotListen(settings.host, settings.port, error.strerror or str(error))


@contextlib.contextmanager
def advertise(state_directory: Path, bound: socket.socket) -> Iterator[None]:
    """Say where the daemon serves: on standard output, to a service manager, and in a note.

    The note is for the clients of the same user on this machine.
    """
    host, port = bound.getsockname()[:2]
    note = state_directory / "endpoint"
    local = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host  # noqa: S104
    new = note.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(new, "w", opener=private) as file:
        # Held for as long as this process lives: a note that nobody holds is a dead daemon's.
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"https://{f'[{local}]' if ':' in local else local}:{port}\n")
        file.flush()
        new.rename(note)
        try:
            print(f"serving gRPC endpoint at {f'[{host}]' if ':' in host else host}:{port}", flush=True)  # noqa: T201
            _tell_service_manager("READY=1")
            yield
        finally:
            note.unlink(missing_ok=True)


def _tell_service_manager(state: str) -> None:
    """Tell the service manager that started this process how it is, if there is one that listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in ("/", "@"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, contextlib.suppress(OSError):
            manager.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
            manager.send(state.encode())


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as are allowed: each follower needs two. Jobs keep what the daemon started with."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
