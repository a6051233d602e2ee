"""How each kind of fault is done."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from tests.faults.processes import Process, find_child, find_parent
from tests.faults.schedule import Kind, Strike
from tests.faults.world import PROCESSES, World
from tests.proxy import Direction, Fault
from workerd.engine.job import JobState

T = TypeVar("T")

API_NAME = "workerd-api"
_ZYGOTE_NAME = "workerd-zygote"
_SUPERVISOR_NAME = "workerd-job"
_CATALOG = "catalog.sqlite*"


class Striker:
    """Does to a world what a schedule says."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._later: set[asyncio.Task[None]] = set()
        self._ways: dict[Kind, Callable[[Strike], Awaitable[bool]]] = {
            Kind.DAEMON_KILL: self._kill_daemon,
            Kind.DAEMON_RESTART: self._restart_daemon,
            Kind.DAEMON_PAUSE: self._pause_daemon,
            Kind.API_KILL: self._kill_api_process,
            Kind.CATALOG_DELETE: self._delete_catalog,
            Kind.ZYGOTE_KILL: self._kill_zygote,
            Kind.ZYGOTE_PAUSE: self._pause_zygote,
            Kind.SUPERVISOR_KILL: self._kill_supervisor,
            Kind.SUPERVISOR_PAUSE: self._pause_supervisor,
            Kind.CLIENT_KILL: self._kill_client,
            Kind.CLIENT_PAUSE: self._pause_client,
            Kind.CUT_ALL: self._cut_all,
            Kind.RESET_ALL: self._cut_all,
            Kind.STALL_ALL: self._stall_all,
            Kind.TRUNCATE: self._truncate,
            Kind.TRUNCATE_NEXT: self._truncate_next,
        }

    async def strike(self, strike: Strike) -> bool:
        """Do it; return whether there was anything to do it to."""
        return await self._ways[strike.kind](strike)

    async def calm(self) -> None:
        """Undo what was for a while, so that everybody can come to an end."""
        for task in self._later:
            task.cancel()
        await asyncio.gather(*self._later, return_exceptions=True)
        await self._world.pauses.end()
        self._world.proxy.resume()

    # The daemon and what belongs to it

    async def _kill_daemon(self, strike: Strike) -> bool:
        await self._world.stop_daemon(signal.SIGKILL)
        await asyncio.sleep(strike.seconds / 2)
        await self._world.start_daemon()
        return True

    async def _restart_daemon(self, strike: Strike) -> bool:
        code = await self._world.stop_daemon(signal.SIGTERM)
        if code != 0:
            raise AssertionError(f"the daemon ended with {code}: {self._world.daemon.errors()[-2000:]}")
        await asyncio.sleep(strike.seconds / 2)
        await self._world.start_daemon()
        return True

    async def _pause_daemon(self, strike: Strike) -> bool:
        return self._pause(Process(self._world.daemon.pid, parent=os.getpid()), strike)

    async def _kill_api_process(self, strike: Strike) -> bool:
        if PROCESSES == 1:
            return await self._kill_daemon(strike)
        return _signal(_choose_process(find_child(self._world.daemon.pid, API_NAME), strike), signal.SIGKILL)

    async def _delete_catalog(self, strike: Strike) -> bool:
        down = strike.target % 2 == 0
        if down:
            await self._world.stop_daemon(signal.SIGKILL)
        for path in self._world.daemon.state.glob(_CATALOG):
            path.unlink(missing_ok=True)
        if down:
            await self._world.start_daemon()
        return True

    async def _kill_zygote(self, strike: Strike) -> bool:
        return _signal(_choose_process(find_child(self._world.daemon.pid, _ZYGOTE_NAME), strike), signal.SIGKILL)

    async def _pause_zygote(self, strike: Strike) -> bool:
        return self._pause(_choose_process(find_child(self._world.daemon.pid, _ZYGOTE_NAME), strike), strike)

    # Jobs

    async def _kill_supervisor(self, strike: Strike) -> bool:
        """Kill a supervisor whose job has not ended, which is certain only of one that has been stopped first."""
        job = _choose(self._world.running_jobs(), strike)
        status = None if job is None else job.status()
        supervisor = None if status is None else find_parent(status.pid, _SUPERVISOR_NAME)
        if job is None or supervisor is None:
            return False
        with contextlib.closing(supervisor):
            if self._world.pauses.is_paused(supervisor.pid):
                return False
            await supervisor.stop_now()
            status = job.status()
            if status is None or status.state is JobState.ENDED:
                supervisor.signal(signal.SIGCONT)
                return False
            job.doomed = True
            supervisor.signal(signal.SIGKILL)
        return True

    async def _pause_supervisor(self, strike: Strike) -> bool:
        job = _choose(self._world.running_jobs(), strike)
        status = None if job is None else job.status()
        return status is not None and self._pause(find_parent(status.pid, _SUPERVISOR_NAME), strike)

    # Clients and connections

    async def _kill_client(self, strike: Strike) -> bool:
        follower = _choose(self._world.living_followers(), strike)
        if follower is None:
            return False
        follower.kill()
        return True

    async def _pause_client(self, strike: Strike) -> bool:
        follower = _choose(self._world.living_followers(), strike)
        return follower is not None and follower.pause(self._world.pauses, strike.seconds)

    async def _cut_all(self, strike: Strike) -> bool:
        self._world.proxy.cut(reset=strike.kind is Kind.RESET_ALL)
        return True

    async def _stall_all(self, strike: Strike) -> bool:
        self._world.proxy.stall()
        self._do_later(strike.seconds, self._world.proxy.resume)
        return True

    async def _truncate(self, strike: Strike) -> bool:
        connection = _choose([one for one in self._world.proxy.connections if one.open], strike)
        if connection is None:
            return False
        direction: Direction = "up" if strike.upwards else "down"
        after_bytes = connection.passed[direction] + strike.after_bytes
        connection.fault = Fault("reset" if strike.reset else "cut", after_bytes, direction)
        return True

    async def _truncate_next(self, strike: Strike) -> bool:
        kind: Literal["reset", "cut"] = "reset" if strike.reset else "cut"
        self._world.proxy.plan(Fault(kind, strike.after_bytes, "up" if strike.upwards else "down"))
        return True

    # Small parts

    def _pause(self, process: Process | None, strike: Strike) -> bool:
        return process is not None and self._world.pauses.pause(process, strike.seconds)

    def _do_later(self, seconds: float, act: Callable[[], None]) -> None:
        async def wait_and_act() -> None:
            await asyncio.sleep(seconds)
            act()

        task = asyncio.create_task(wait_and_act())
        self._later.add(task)
        task.add_done_callback(self._later.discard)


def _signal(process: Process | None, number: signal.Signals) -> bool:
    if process is None:
        return False
    with contextlib.closing(process):
        process.signal(number)
    return True


def _choose(candidates: Sequence[T], strike: Strike) -> T | None:
    return candidates[strike.target % len(candidates)] if candidates else None


def _choose_process(candidates: Sequence[Process], strike: Strike) -> Process | None:
    chosen = _choose(candidates, strike)
    for process in candidates:
        if process is not chosen:
            process.close()
    return chosen
