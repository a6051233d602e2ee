"""The world that is broken: a daemon behind a proxy, its jobs, and those who follow them."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from worker_api.worker.v1 import Stream

from tests.daemon import Daemon, end_jobs
from tests.faults import repeating
from tests.faults.followers import BOTH, Follower, LibraryFollower, ProcessFollower, RunFollower
from tests.faults.jobs import Job
from tests.faults.processes import Pauses, processes_of_jobs, wait_until
from tests.faults.schedule import RepeatSpawn, StartFollower, StartJob
from tests.proxy import Proxy
from workerctl.client import Client
from workerd.engine.reader import measure

# How many API processes the daemon has.
PROCESSES = 2
_JOBS_AT_ONCE = 12
_FOLLOWERS_AT_ONCE = 10
_SPAWN_SECONDS = 120.0
_JOB_SECONDS = 300.0
_FOLLOWER_SECONDS = 300.0
_START_SECONDS = 60.0
_STREAMS = {"raw": BOTH, "stdout": (Stream.STDOUT,), "stderr": (Stream.STDERR,)}


class World:
    """Everything that takes part in a run. An asynchronous context manager that leaves no process behind.

    Attributes:
        jobs: all that were ever asked for, in that order.
        followers: all that there ever were.
        pauses: who is stopped for a while.
    """

    def __init__(self, directory: Path) -> None:
        processes = () if PROCESSES == 1 else ("--processes", str(PROCESSES))
        self.daemon = Daemon(directory / "state", processes, listen=f"127.0.0.1:{_fixed_port()}")
        self.jobs: list[Job] = []
        self.followers: list[Follower] = []
        self.pauses = Pauses()
        self._directory = directory
        self._job_slots = asyncio.Semaphore(_JOBS_AT_ONCE)
        self._follower_slots = asyncio.Semaphore(_FOLLOWERS_AT_ONCE)
        self._tasks: dict[asyncio.Task[None], str] = {}

    async def __aenter__(self) -> Self:
        try:
            await self.start_daemon()
            self.proxy = Proxy(self.daemon.port).__enter__()
        except BaseException:
            self._end_processes()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pauses.end()
        self.proxy.__exit__(kind, error, trace)
        self._end_processes()

    # What the schedule asks for, besides faults

    def start_job(self, plan: StartJob) -> None:
        """Have a job started as soon as there is a place for it."""
        job = Job(plan, self.daemon.state / "jobs", self._directory / f"diary-{plan.number}")
        self.jobs.append(job)
        self._begin(self._see_through(job), f"the end of {job.name}")

    def start_follower(self, plan: StartFollower) -> None:
        """Have a job followed as soon as its id is known and there is a place for another follower."""
        job = self.jobs[plan.job]
        self._begin(self._follow(job, plan, len(self._tasks)), f"a follower of {job.name}")

    def repeat_spawn(self, plan: RepeatSpawn) -> None:
        """Spawn a job once more with its key, if that has been answered already."""
        job = self.jobs[plan.job]
        if job.acknowledged is not None:
            self._begin(self._spawn(job), f"the answer to another spawn of {job.name}")

    async def wait_for_everybody(self, limit_seconds: float) -> None:
        """Wait until all jobs and followers have come to their end.

        Raises:
            TimeoutError: the message names those who have not.
            Exception: whatever one of them met with.
        """
        await asyncio.wait(self._tasks, timeout=limit_seconds, return_when=asyncio.FIRST_EXCEPTION)
        self.raise_failures()
        if outstanding := [what for task, what in self._tasks.items() if not task.done()]:
            raise TimeoutError(f"waited {limit_seconds} s for {', '.join(outstanding)}")

    def raise_failures(self) -> None:
        """Raise what a job or a follower met with, if any has.

        Raises:
            ExceptionGroup: of it all.
        """
        if failures := [task.exception() for task in self._tasks if task.done() and not task.cancelled()]:
            errors = [error for error in failures if isinstance(error, Exception)]
            if errors:
                raise ExceptionGroup("not everybody came to a good end", errors)

    # What faults need

    async def start_daemon(self) -> None:
        """Start the daemon on its port.

        Raises:
            TimeoutError: it does not say that it serves.
        """
        starting = asyncio.create_task(asyncio.to_thread(self.daemon.start))
        done, _ = await asyncio.wait([starting], timeout=_START_SECONDS)
        if not done:
            if self.daemon.process is not None:
                self.daemon.process.kill()
            await asyncio.wait([starting])
            raise TimeoutError(f"waited {_START_SECONDS} s for the daemon to serve: {self.daemon.errors()[-2000:]}")
        starting.result()

    async def stop_daemon(self, number: signal.Signals) -> int:
        """End the daemon with a signal and return its exit code."""
        return await asyncio.to_thread(self.daemon.stop, number)

    def running_jobs(self) -> list[Job]:
        """Tell which jobs run now."""
        return [job for job in self.jobs if job.is_running()]

    def living_followers(self) -> list[Follower]:
        """Tell who follows now."""
        return [follower for follower in self.followers if follower.is_alive()]

    def job_ids(self) -> dict[str, Job]:
        """Tell every job's id that is known."""
        return {job.id: job for job in self.jobs if job.id is not None}

    def client(self, *, direct: bool, on_retry: Callable[[str], None] | None = None) -> Client:
        """Make a client, through the proxy or past it."""
        return Client(self.daemon.target(endpoint=self._endpoint(direct=direct)), on_retry)

    # How it is done

    def _end_processes(self) -> None:
        if self.daemon.process is not None:
            self.daemon.stop(signal.SIGKILL)
        end_jobs(self.daemon.state)
        folders = {path.name for path in (self.daemon.state / "jobs").glob("*")}
        for pid, _ in processes_of_jobs(folders):  # of jobs whose supervisor was killed at the very last
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _begin(self, work: Coroutine[Any, Any, None], what: str) -> None:
        self._tasks[asyncio.create_task(work, name=what)] = what

    async def _see_through(self, job: Job) -> None:
        async with self._job_slots:
            if job.plan.by == "run":
                command = self._workerctl("run", "--name", job.name, "--", *job.command, direct=job.plan.direct)
                files = self._directory / f"run-{job.plan.number}"
                await self._let_follow(RunFollower(job, command, files, _FOLLOWER_SECONDS))
            else:
                await self._spawn(job)
            if job.id is not None:
                await wait_until(job.has_ended, f"the end of {job.name}, {job.id}", _JOB_SECONDS)

    async def _spawn(self, job: Job) -> None:
        def make_client() -> Client:
            return self.client(direct=job.plan.direct)

        job_id = await repeating.spawn_until_answered(make_client, job.request, _SPAWN_SECONDS)
        if job.id not in (None, job_id):
            raise AssertionError(f"{job.name} was {job.id} first, and {job_id} when it was spawned again")
        job.acknowledged = job_id

    async def _follow(self, job: Job, plan: StartFollower, number: int) -> None:
        await wait_until(lambda: job.id is not None or job.given_up, f"the start of {job.name}", _SPAWN_SECONDS)
        async with self._follower_slots:
            if job.id is None:
                return
            await wait_until(lambda: job.status() is not None, f"the status of {job.name}", _SPAWN_SECONDS)
            extent = measure(job.folder)
            start = int(plan.start * (extent.stdout + extent.stderr))
            streams = _STREAMS[plan.streams]
            if plan.by == "library":
                follower: Follower = LibraryFollower(
                    job, lambda retried: self.client(direct=plan.direct, on_retry=retried), streams, start
                )
            else:
                what = ("--stream-type", plan.streams, "--offset", str(start), "--uuid", job.id)
                command = self._workerctl("stream-log", *what, direct=plan.direct)
                files = self._directory / f"follower-{number}"
                follower = ProcessFollower(job, streams, start, command, files, _FOLLOWER_SECONDS)
            await self._let_follow(follower)

    async def _let_follow(self, follower: Follower) -> None:
        self.followers.append(follower)
        await follower.run()

    def _workerctl(self, *arguments: str, direct: bool) -> Sequence[str]:
        return self.daemon.command(*arguments, endpoint=self._endpoint(direct=direct))

    def _endpoint(self, *, direct: bool) -> str:
        return self.daemon.endpoint if direct else self.proxy.endpoint


def _fixed_port() -> int:
    """Choose a port that nobody is given by chance while the daemon is down (ip(7), ip_local_port_range)."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(lowest - 1 - os.getpid() % 1000, 1024, -1):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"there is no free port below {lowest}")
