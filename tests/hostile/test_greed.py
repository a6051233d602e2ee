"""Whatever one user does, and however often, others are answered in time and the daemon's memory is bounded."""

import asyncio
import contextlib
import math
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from worker_api.worker.v1 import ErrorReason, SpawnRequest

from tests.daemon import Daemon, multiply, running_daemon
from tests.freezing import making_freezer
from tests.holding import forget_peak, peak_bytes
from tests.hostile.greed import CASES
from tests.hostile.witness import check_log
from workerctl.client import Client
from workerctl.errors import CallFailed
from workerd.engine.job import Share, User

_ATTACKER = "mallory"
_ARGUMENTS = 65_000  # of each of the attacker's jobs, more than a daemon takes unless it is set to
_JOBS = 200
_USERS = 3_000
_SHARES = 990
_FOLLOWERS = 30  # besides the streams of `long_logs`, within the limit on a user's streams
_END_SECONDS = 0.75
_IDLE_SECONDS, _GREED_SECONDS = 2.0, 8.0
_PAUSE_SECONDS = 0.02  # much less than half a second: the more calls, the more a p99 means
_LONGEST_SECONDS = 5.0  # of a call, which then counts as one of so long
_LIMIT_SECONDS, _TIMES_IDLE = 0.25, 5
_MEMORY_BYTES = 256 << 20
_NEW_CLIENTS, _CONNECTED_SECONDS, _NEW_LIMIT_SECONDS = 9, 30, 1.0
_ROOT = Path(__file__).parents[2]
_SCRIPTS = {
    "stopped_supervisors": ("sleep 0.3; while kill -STOP $PPID; do sleep 0.05; done", 20),
    "frozen_jobs": ("exec sleep 1000", 20),
    "followed_shares": ("echo ready; exec sleep 1000", 1),
    "long_logs": ("exec head -c 50000000 /dev/zero", 1),
}
"""What the attacker's jobs do that a case is about, and how many there are."""


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    """A daemon with many users, and with large jobs of the attacker, which it was set to take before; the id of one."""
    state = tmp_path_factory.mktemp("daemon") / "state"
    with running_daemon(state, "--max-arguments", "0", "--max-argument-bytes", "0") as daemon:
        daemon.pki.issue_client(_ATTACKER)
        job_id = asyncio.run(_run_large(daemon))
    users = state / "users"
    for number in range(_USERS):
        (users / str(uuid.uuid4())).write_text(f"user-{number}")
    multiply(daemon.folder(job_id), _JOBS)
    with running_daemon(state) as daemon:
        yield daemon, job_id
        check_log(daemon.errors())


async def _run_large(daemon: Daemon) -> str:
    async with daemon.client(_ATTACKER) as client:
        job_id = await client.spawn(SpawnRequest(program="true", args=["0123456789"] * _ARGUMENTS))
        async for _ in client.stream_log(job_id):
            pass
    return job_id


@dataclass
class Taken:
    """How long another user's calls took: many of Status, and one of Spawn."""

    statuses: list[float] = field(default_factory=list)
    spawn: float = 0.0

    def at(self, share: float) -> float:
        """Return the time that a share of the calls did not exceed."""
        calls = sorted([*self.statuses, self.spawn])
        return calls[math.ceil(len(calls) * share) - 1]

    def __str__(self) -> str:
        return (
            f"{1e3 * self.at(0.5):.0f}/{1e3 * self.at(0.99):.0f} ms (p50/p99 of {len(self.statuses)}), "
            f"spawn {1e3 * self.spawn:.0f} ms"
        )


async def _measure(client: Client, job_id: str, seconds: float) -> Taken:
    """Ask for the status of a job again and again, and spawn once in between."""
    taken, end = Taken(), time.monotonic() + seconds

    async def time_call(call: Awaitable[object]) -> float:
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_SECONDS):
                await call
        return time.monotonic() - began

    while time.monotonic() < end or not taken.spawn:
        taken.statuses.append(await time_call(client.status(job_id)))
        if not taken.spawn and time.monotonic() > end - seconds / 2:
            taken.spawn = await time_call(client.spawn(SpawnRequest(program="true")))
        await asyncio.sleep(_PAUSE_SECONDS)
    return taken


@contextlib.asynccontextmanager
async def _jobs_of(case: str, daemon: Daemon, large: str) -> AsyncIterator[Sequence[str]]:
    """Yield the ids of the attacker's jobs that a case is about."""
    if case not in _SCRIPTS:
        yield [large]
        return
    script, count = _SCRIPTS[case]
    async with contextlib.AsyncExitStack() as stack:
        freezer = stack.enter_context(making_freezer()) if case == "frozen_jobs" else None
        client = await stack.enter_async_context(daemon.client(_ATTACKER))
        job_ids = [await client.spawn(SpawnRequest(program="sh", args=["-c", script])) for _ in range(count)]
        if freezer is not None:
            freezer.freeze(*[(await client.status(job_id)).pid for job_id in job_ids])
        if case == "followed_shares":  # as that many calls of Share leave it
            shares = tuple(Share(User("", f"stranger-{number:03}"), ("status",)) for number in range(_SHARES))
            daemon.folder(job_ids[0]).write_shares(shares)
        yield job_ids


@contextlib.asynccontextmanager
async def _greed(case: str, daemon: Daemon, job_ids: Sequence[str], answers: list[int]) -> AsyncIterator[None]:
    """Run the attackers during the context; add the number of their answers."""
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.hostile.greed", case, daemon.endpoint, _ATTACKER, str(daemon.pki.path)),
        *job_ids,
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert attacker.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await attacker.stdout.readline() == b"begun\n"
        yield
        async with asyncio.timeout(30):
            answers.append(int((await attacker.communicate(b""))[0].split()[-1]))
    finally:
        if attacker.returncode is None:
            attacker.kill()
            await attacker.wait()


@pytest.mark.parametrize("case", CASES)
async def test_others_are_answered_in_time_whatever_one_user_does(
    crowded: tuple[Daemon, str], note: Callable[[str], None], case: str
) -> None:
    daemon, large = crowded
    answers: list[int] = []
    async with daemon.client() as client, _jobs_of(case, daemon, large) as job_ids:
        job_id = await client.spawn(SpawnRequest(program="true"))
        idle = await _measure(client, job_id, _IDLE_SECONDS)
        forget_peak(daemon.pid)
        async with _greed(case, daemon, job_ids, answers):
            meanwhile = await _measure(client, job_id, _GREED_SECONDS)
        peak = peak_bytes(daemon.pid)
    note(f"idle {idle}; meanwhile {meanwhile}, {answers[0]} answers to the other, {peak / 2**20:.0f} MiB at most")
    assert peak <= _MEMORY_BYTES
    assert meanwhile.at(0.99) <= max(_LIMIT_SECONDS, _TIMES_IDLE * idle.at(0.99))


async def _connect_anew(daemon: Daemon) -> list[float]:
    """Return how long new clients take for their first call, in seconds, sorted."""
    taken = []
    for _ in range(_NEW_CLIENTS):
        began = time.monotonic()
        async with asyncio.timeout(_CONNECTED_SECONDS), daemon.client() as client:
            await client.whoami()
        taken.append(time.monotonic() - began)
    return sorted(taken)


@pytest.mark.parametrize("case", ["silent_connections", "begun_handshakes"])
async def test_a_new_client_is_served_while_others_open_connections(
    crowded: tuple[Daemon, str], note: Callable[[str], None], case: str
) -> None:
    daemon, _ = crowded
    idle = await _connect_anew(daemon)
    async with _greed(case, daemon, [], []):
        meanwhile = await _connect_anew(daemon)
    middle = _NEW_CLIENTS // 2
    note(f"idle {1e3 * idle[middle]:.0f}; meanwhile {1e3 * meanwhile[middle]:.0f} ms (p50 of {_NEW_CLIENTS})")
    assert meanwhile[middle] <= _NEW_LIMIT_SECONDS


async def test_streams_end_soon_when_their_share_is_taken_back_whatever_their_user_does(
    crowded: tuple[Daemon, str], note: Callable[[str], None]
) -> None:
    daemon, _ = crowded
    ready = asyncio.Semaphore(0)

    async def follow(client: Client, job_id: str) -> ErrorReason | None:
        try:
            async for _ in client.stream_log(job_id):
                ready.release()
        except CallFailed as error:
            return error.reason
        return None

    async with daemon.client() as owner, daemon.client(_ATTACKER) as other:
        job_id = await owner.spawn(SpawnRequest(program="sh", args=["-c", "echo ready; exec sleep 1000"]))
        await owner.share(job_id, _ATTACKER, {"status", "stream-log"})
        async with _jobs_of("long_logs", daemon, "") as job_ids, asyncio.TaskGroup() as tasks, asyncio.timeout(60):
            following = [tasks.create_task(follow(other, job_id)) for _ in range(_FOLLOWERS)]
            for _ in following:
                await ready.acquire()
            async with _greed("long_logs", daemon, job_ids, []):
                meanwhile = await _measure(owner, job_id, 1.0)
                began = time.monotonic()
                await owner.share(job_id, _ATTACKER)
                shared = time.monotonic()
                reasons = await asyncio.gather(*following)
                ended = time.monotonic()
        await owner.stop(job_id)
    answered = f"taken back in {1e3 * (shared - began):.0f} ms"
    note(f"{meanwhile}; {answered}, {_FOLLOWERS} streams ended {1e3 * (ended - shared):.0f} ms later")
    assert set(reasons) == {ErrorReason.JOB_NOT_FOUND}
    assert ended - shared <= _END_SECONDS
