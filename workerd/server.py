"""Assembling the daemon: certificates, engine, handlers, socket; serving; and ending without harm to any job."""

import contextlib
import gc
import getpass
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping

import structlog

from pki.errors import Missing
from pki.files import require_trusted_folder
from pki.store import PkiFolder
from system.ownership import make_folder, require_trusted, require_trusted_content
from workerd.access.accounts import Accounts
from workerd.access.credentials import Credentials
from workerd.access.expiry import remind
from workerd.access.newest_list import NewestList
from workerd.access.recorder import Record, Recorder
from workerd.access.rights import Rights
from workerd.access.users import Users
from workerd.engine import cgroup, request_keys
from workerd.engine.account import find_account, own_account, own_name
from workerd.engine.engine import Engine
from workerd.engine.errors import AccountUnusable
from workerd.errors import ConfigurationInvalid
from workerd.gate import Gate
from workerd.handler import Daemon
from workerd.limits import Meter
from workerd.listening import advertise, listen
from workerd.network.codec import Codec, StatusDetailsCodec
from workerd.network.connection import Surroundings
from workerd.network.receiving import start_decoder
from workerd.network.transport import WorkerServer
from workerd.notices import Notices
from workerd.registry import Route, load_routes, rights_of
from workerd.resource_limits import warn_of_shortages
from workerd.settings import Settings
from workerd.trail.events import JobEvents, noting_service
from workerd.trail.following import keeping_heads
from workerd.trail.remembered import RememberedHead
from workerd.trail.writer import AuditTrail
from workerd.waiting import meanwhile, stop_signals, wait_first

log = structlog.get_logger()
_CLOSE_SECONDS = 5.0
_COLLECTIONS = (700, 10, 50)
LAST_READERS_SECONDS = 30.0


async def serve(settings: Settings) -> None:
    """Serve in this process until SIGTERM or SIGINT, or until a drain is over.

    Raises:
        CannotListen: the address cannot be listened on.
        ConfigurationInvalid: jobs cannot run as an account that is set.
        PluginInvalid: a handler cannot be served.
        PolicyInvalid: the policies cannot be used.
        PkiError: the certificates cannot be read or made.
        StateDirectoryGone: the state directory was removed.
        StateDirectoryInUse: another daemon holds the state directory.
        Untrusted: other accounts can change the daemon's folders.
    """
    routes = load_routes()
    prepare(settings)
    stop = stop_signals()
    async with telling_engine(settings) as (engine, trail):
        if engine.keeper is None:
            raise AssertionError("an engine that serves alone has a keeper")
        with listen(settings) as listening:
            make_certificates(settings)  # not before the folder and the port are ours
            with noting_service(trail, settings.processes):
                async with (
                    meanwhile(remind(PkiFolder(settings.pki_directory))),
                    answering(engine, settings, routes, listening, trail.record) as gate,
                ):
                    warn_of_account(settings)
                    warn_of_cgroup()
                    warn_of_shortages(settings.limits)
                    with advertise(settings.state_directory, listening):
                        first = await wait_first(stop.wait(), engine.keeper.wait_drained(), engine.keeper.wait_gone())
                    if first == 1:
                        log.info("drained: no job is left")
                        await wait_first(stop.wait(), gate.wait_idle(LAST_READERS_SECONDS))
                    else:
                        log.info("shutting down; jobs run on")


@contextlib.asynccontextmanager
async def telling_engine(settings: Settings, *, keeps: bool = True) -> AsyncIterator[tuple[Engine, AuditTrail]]:
    """Run an engine that tells the audit trail of its jobs. It is as `Engine` has it."""
    remembered = RememberedHead(settings.audit_head)
    async with contextlib.AsyncExitStack() as stack:
        if keeps:
            await stack.enter_async_context(keeping_heads(settings.audit_directory, remembered, settings.audit_witness))
        trail = stack.enter_context(AuditTrail(settings.audit_directory, settings.max_audit_bytes, remembered))
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
    credentials = Credentials(pki, NewestList(settings.state_directory / "newest-crl.json"))
    rights = Rights(settings.policy_directory, settings.roles, rights_of(routes.values()))
    accounts = Accounts(own_name(), settings.run_as, settings.accounts)
    daemon = Daemon(engine, Users(settings.state_directory / "users"), pki, settings.grace_seconds, accounts)
    meter, notices = Meter(settings.limits), Notices()
    recorder = Recorder(record)
    gate = Gate(daemon, routes, credentials, rights, recorder, meter, notices)
    server = WorkerServer(
        [gate],
        codec=Codec(),
        status_details_codec=StatusDetailsCodec(),
        around=Surroundings(settings.keepalive_seconds, meter, notices, credentials.identify, credentials.watch),
    )
    start_decoder()
    server.serve(listening, credentials.context)
    try:
        with _short_collections():
            async with meanwhile(credentials.follow()), meanwhile(rights.follow()):
                yield gate
    finally:
        await gate.close(_CLOSE_SECONDS)
        server.close()
        recorder.close()


@contextlib.contextmanager
def _short_collections() -> Iterator[None]:
    """Keep the garbage collector from stopping the loop for long.

    Full collections are rare, and never look at the objects that exist at the start (gc.freeze).
    """
    before = gc.get_threshold()
    gc.set_threshold(*_COLLECTIONS)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def prepare(settings: Settings) -> None:
    """Check the accounts that jobs run as and who can change the daemon's folders, and make the state directory.

    Raises:
        ConfigurationInvalid: jobs cannot run as one of these accounts.
        Untrusted: other accounts can change a folder, or a file in it.
    """
    usable: set[str] = set()
    for option, account in settings.accounts_by_option.items():
        try:
            if account not in usable:
                find_account(account)
        except AccountUnusable as error:
            raise ConfigurationInvalid(f"{option}: {error}") from error
        usable.add(account)
    make_folder(settings.state_directory)
    require_trusted_content(settings.state_directory)
    require_trusted(settings.state_directory / request_keys.FILE_NAME, secret=True)
    require_trusted_content(settings.audit_directory)
    require_trusted_content(settings.policy_directory)
    require_trusted_folder(settings.pki_directory)


def make_certificates(settings: Settings) -> None:
    """Make certificates where there are none.

    Raises:
        PkiError: they cannot be made, or not all that are needed are there.
    """
    folder = PkiFolder(settings.pki_directory)
    if folder.is_initialized():
        return
    needed = (folder.server_certificate, folder.client_ca)
    for there, missing in (needed, needed[::-1]):
        if there.exists():
            problem, advice = f"it is not there, and {there.name} is", f"copy it from where {there.name} was made"
            raise Missing(missing, problem, advice)
    user = _own_name()
    folder.initialize(users=[user])
    certificate = str(folder.client_certificate(user))
    log.info("made certificates", folder=str(folder.path), user=user, certificate=certificate)


def warn_of_account(settings: Settings) -> None:
    """Warn of what may surprise about the accounts that jobs run as when a spawn names none."""
    own = own_account()
    if own.uid == 0 and not settings.run_as:
        log.warning(
            "jobs run as root, and who may start one is as good as root: name an account with --run-as, or root if"
            " that is meant"
        )
    for name in dict.fromkeys((settings.run_as or own.name, *settings.accounts.values())):
        account = own if name == own.name else find_account(name) or own
        if not os.path.isdir(account.home):
            log.warning(
                "the account that jobs run as has no home directory: they cannot start without --working-directory",
                account=account.name,
                home=account.home,
            )


def warn_of_cgroup() -> None:
    """Warn if another account controls the cgroup that the daemon was started in."""
    if (foreign := cgroup.find_foreign()) is not None:
        log.warning(
            "another account can end, freeze and move the daemon and all jobs, which get no cgroups: start the daemon"
            " as a service, or with systemd-run, and not from a session of that account",
            path=str(foreign.path),
            problem=foreign.problem,
        )


def _own_name() -> str:
    """Tell the name of the daemon's user, for a certificate; the number where a container has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # whichever it is: both are documented, for different versions of Python
        return str(os.getuid())
