"""The main process of several: it keeps the jobs and the port, and has API processes answer the calls.

Each API process listens on a socket of its own, and the kernel spreads connections over them (socket(7), SO_REUSEPORT).
The main process has the port too, without listening, so that it stays the daemon's while API processes come and go.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import structlog

from pki.store import PkiFolder
from system import environment, pidfd
from workerd.access.expiry import remind
from workerd.api_process import DRAINED, SERVING, Orders
from workerd.engine.keeper import Keeper
from workerd.engine.process_end import wait_end
from workerd.errors import CannotServe
from workerd.listening import advertise, bind
from workerd.resource_limits import warn_of_shortages
from workerd.server import LAST_READERS_SECONDS, make_certificates, prepare, warn_of_account, warn_of_cgroup
from workerd.settings import Settings
from workerd.trail.events import JobEvents, noting_service
from workerd.trail.following import keeping_heads
from workerd.trail.remembered import RememberedHead
from workerd.trail.writer import AuditTrail
from workerd.waiting import meanwhile, stop_signals, wait_first

log = structlog.get_logger()
_SETTLED_SECONDS = 10.0  # whoever served for so long did not die of its start
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
_END_SECONDS = 20.0
_KILLED_SECONDS = 5.0


async def serve(settings: Settings) -> None:
    """Serve with several processes until SIGTERM or SIGINT, or until a drain is over.

    Raises:
        CannotServe: no API process can.
        ConfigurationInvalid: jobs cannot run as the account that is set.
        PkiError: the certificates cannot be made.
        StateDirectoryGone: the state directory was removed.
        StateDirectoryInUse: another daemon holds the state directory.
        Untrusted: other accounts can change the daemon's folders.
    """
    prepare(settings)
    stop = stop_signals()
    async with _telling_keeper(settings) as (keeper, trail):
        with _take_port(settings) as bound:
            make_certificates(settings)  # not before the folder and the port are ours
            with noting_service(trail, settings.processes):
                async with meanwhile(remind(PkiFolder(settings.pki_directory))):
                    await _serve(settings, keeper, bound, stop)


async def _serve(settings: Settings, keeper: Keeper, bound: socket.socket, stop: asyncio.Event) -> None:
    host, port = bound.getsockname()[:2]
    processes = ApiProcesses(replace(settings, host=host, port=port), keeper.hold)
    running = asyncio.create_task(processes.run())
    try:
        if await wait_first(stop.wait(), processes.wait_serving(), asyncio.shield(running)) != 1:
            return
        warn_of_account(settings)
        warn_of_cgroup()
        warn_of_shortages(settings.limits)
        with advertise(settings.state_directory, bound):
            first = await wait_first(stop.wait(), keeper.wait_drained(), keeper.wait_gone(), asyncio.shield(running))
        if first == 1:
            log.info("drained: no job is left")
            await wait_first(stop.wait(), processes.end(DRAINED, LAST_READERS_SECONDS + _END_SECONDS))
        else:
            log.info("shutting down; jobs run on")
    finally:
        await processes.end(signal.SIGTERM, _END_SECONDS)
        await asyncio.wait([running])
        with contextlib.suppress(CannotServe):  # raised above, where it was waited for
            running.result()


@contextlib.asynccontextmanager
async def _telling_keeper(settings: Settings) -> AsyncIterator[tuple[Keeper, AuditTrail]]:
    """Run a keeper that tells the audit trail of its jobs."""
    remembered = RememberedHead(settings.audit_head)
    async with keeping_heads(settings.audit_directory, remembered, settings.audit_witness):
        with AuditTrail(settings.audit_directory, settings.max_audit_bytes, remembered) as trail:
            events = JobEvents(trail)
            keeper = Keeper(
                settings.state_directory,
                settings.storage,
                on_end=events.ended,
                on_remove=events.removed,
                max_ending=settings.limits.for_jobs().max_ending,
            )
            async with keeper:
                yield keeper, trail


@contextlib.contextmanager
def _take_port(settings: Settings) -> Iterator[socket.socket]:
    if settings.port:
        # A shared port can be taken while another daemon of the same user serves there: one that is not, cannot.
        bind(settings, shared=False).close()
    with bind(settings, shared=True) as bound:
        # While no API process listens, other accounts may share the port of a socket that has this (socket(7)).
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield bound


class ApiProcesses:
    """Keeps the API processes running.

    Args:
        settings: with the address that was taken.
        hold: the descriptor that holds the state directory.
    """

    def __init__(self, settings: Settings, hold: int) -> None:
        self._settings = settings
        self._hold = hold
        self._slots: list[asyncio.Task[None]] = []
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._serving: set[int] = set()
        self._changed = asyncio.Condition()
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Start the processes, and replace each that ends, until `end`.

        Raises:
            CannotServe: one says that it cannot serve as things are; the others are told to end.
        """
        self._slots = [asyncio.create_task(self._keep(number)) for number in range(self._settings.processes)]
        try:
            await asyncio.wait(self._slots, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await self.end(signal.SIGTERM, _END_SECONDS)
            ended = await asyncio.gather(*self._slots, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result

    async def wait_serving(self) -> None:
        """Wait until all accept connections."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._serving) == self._settings.processes)

    async def end(self, number: signal.Signals, timeout_seconds: float) -> None:
        """Tell all processes to end, and wait until they have; those that do not in time are killed.

        A process that SIGKILL does not end, as in an uninterruptible sleep, is left.
        """
        self._tell(number)
        async with self._changed:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._changed.wait_for(lambda: not self._running)
            except TimeoutError:
                log.warning("API processes do not end and are killed", processes=self._ids())
                self._tell(signal.SIGKILL)
                try:
                    async with asyncio.timeout(_KILLED_SECONDS):
                        await self._changed.wait_for(lambda: not self._running)
                except TimeoutError:
                    log.error("API processes that were killed do not end and are left", processes=self._ids())
                    self._running.clear()
                    for slot in self._slots:
                        slot.cancel()

    def _tell(self, number: signal.Signals) -> None:
        self._ending.set()
        for process in self._running.values():
            process.send_signal(number)

    def _ids(self) -> list[int]:
        return [process.pid for process in self._running.values()]

    async def _keep(self, slot: int) -> None:
        deaths = 0  # one after another, each soon after its start, or before it
        while not self._ending.is_set():
            try:
                process, report = self._start()
            except OSError as error:  # no process or no memory, perhaps only for now
                deaths += 1
                log.error("an API process cannot be started yet", error=str(error))
                await self._pause(_pause_seconds(deaths))
                continue
            self._running[slot] = process
            answer = await _read_to_end(report)
            if answer == SERVING:
                await self._note_serving(slot)
            began = asyncio.get_running_loop().time()
            await _wait_end(process)
            await self._note_end(slot)
            if self._ending.is_set():
                return
            if answer not in (SERVING, b""):
                raise CannotServe(answer.decode(errors="replace"))
            settled = answer == SERVING and asyncio.get_running_loop().time() - began >= _SETTLED_SECONDS
            deaths = 0 if settled else deaths + 1
            log.warning(
                "an API process ended and is replaced",
                process=process.pid,
                how=_how(process.returncode),
                ended_soon_after_start=deaths,
                wait_seconds=_pause_seconds(deaths),
            )
            await self._pause(_pause_seconds(deaths))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()

    def _start(self) -> tuple[subprocess.Popen[bytes], int]:
        report, theirs = os.pipe()
        try:
            orders = Orders(self._settings, os.getpid(), theirs, self._hold)
            # From the main thread: the kernel takes the death of the thread for that of the parent
            # (PR_SET_PDEATHSIG(2const)). In a session of its own: Ctrl-C is the main process's affair.
            with orders.open() as given:
                process = subprocess.Popen(
                    orders.command(),
                    stdin=given,
                    env=environment.clean(),
                    pass_fds=[theirs, self._hold],
                    start_new_session=True,
                )
        except BaseException:
            os.close(report)
            raise
        finally:
            os.close(theirs)
        return process, report

    async def _note_serving(self, slot: int) -> None:
        async with self._changed:
            self._serving.add(slot)
            self._changed.notify_all()

    async def _note_end(self, slot: int) -> None:
        async with self._changed:
            self._serving.discard(slot)
            self._running.pop(slot, None)
            self._changed.notify_all()


async def _wait_end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a child's end without blocking the loop, and reap it."""
    with pidfd.hold(process.pid) as handle:
        await wait_end(handle)
    process.wait(_KILLED_SECONDS)


def _pause_seconds(deaths: int) -> float:
    return 0.0 if deaths <= 1 else min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(deaths - 2, 9))


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


async def _read_to_end(descriptor: int) -> bytes:
    """Read a pipe to its end of file without blocking the loop, and close it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    data = bytearray()

    def receive() -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(descriptor, 4096)
            data.extend(chunk)
            if not chunk and not done.done():
                done.set_result(None)

    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, receive)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return bytes(data)
