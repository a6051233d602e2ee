"""The promises as invariants of a machine that does anything in any order to a real engine with real jobs."""

import asyncio
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.daemon import end_jobs
from tests.engine.logs import ME, has_ended, log_events, program
from tests.programs.obey import pattern
from workerd.engine.engine import Engine, Start
from workerd.engine.errors import JobNotFound
from workerd.engine.job import Exited, JobEnd, Lost, Stopped, Stream
from workerd.engine.reader import Gap, Output
from workerd.engine.storage import MIN_LOG_BYTES, Storage
from workerd.engine.tree import parent_of

T = TypeVar("T")
SECONDS = 30
MOST_JOBS = 3
PLACES = st.integers(0, 11)
BIG = MIN_LOG_BYTES // 2  # so that a log is soon over its limit
WRITES = st.tuples(st.sampled_from(Stream), st.integers(1, 2000))


@dataclass
class Model:
    """What a job must look like from outside: what it has printed, in the order in which it was captured."""

    id: str
    orders: Path
    limited: bool
    printed: bytearray = field(default_factory=bytearray)
    streams: list[tuple[Stream, int]] = field(default_factory=list)
    cause: type[Any] | None = None
    removed: bool = False

    def size(self, stream: Stream) -> int:
        return sum(size for which, size in self.streams if which is stream)

    def owner_of(self, start: int, end: int) -> set[Stream]:
        """The streams that a range of the combined output belongs to."""
        owners, offset = set(), 0
        for stream, size in self.streams:
            if max(start, offset) < min(end, offset + size):
                owners.add(stream)
            offset += size
        return owners


@dataclass
class Follower:
    """One that follows a job from an offset, with what it got."""

    job: Model
    start: int
    task: "asyncio.Task[None]"
    events: list[Output | Gap | JobEnd]


class Machine(RuleBasedStateMachine):
    """Anything that can happen to an engine, its jobs and its readers."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.models: list[Model] = []
        self.following: list[Follower] = []
        self.descriptors: list[int] = []

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the engine's loop."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, SECONDS), self.loop).result(SECONDS + 5)

    def start_engine(self) -> None:
        self.engine = Engine(self.directory / "state", Storage())
        self.closing = self.loop.create_future()
        ready: asyncio.Future[None] = self.loop.create_future()

        async def hold() -> None:
            async with self.engine:
                ready.set_result(None)
                await self.closing

        self.holding = asyncio.run_coroutine_threadsafe(hold(), self.loop)

        async def wait() -> None:
            await ready

        self.call(wait())

    def stop_engine(self) -> None:
        for follower in self.following:
            self.cancel(follower)
        self.following.clear()
        self.loop.call_soon_threadsafe(self.closing.set_result, None)
        self.holding.result(SECONDS)

    # What can be done. A rule names a job by its place among those that it can be done to.

    @property
    def kept(self) -> list[Model]:
        return [model for model in self.models if not model.removed]

    @property
    def running(self) -> list[Model]:
        return [model for model in self.models if model.cause is None]

    @property
    def ended(self) -> list[Model]:
        return [model for model in self.kept if model.cause is not None]

    @initialize()
    def begin(self) -> None:
        self.start_engine()
        self.spawn(limited=True)
        self.spawn(limited=True)

    @precondition(lambda self: len(self.running) < MOST_JOBS)
    @rule(limited=st.booleans())
    def spawn(self, limited: bool) -> None:
        orders = self.directory / f"orders.{len(self.models)}"
        os.mkfifo(orders)
        request = program("obey", str(orders), max_log_bytes=MIN_LOG_BYTES if limited else 0)
        self.models.append(Model(self.call(self.engine.spawn(request)), orders, limited))
        # Held open for reading, too: the job's end must not hold up whoever gives an order.
        self.descriptors.append(os.open(orders, os.O_RDWR))

    @precondition(lambda self: self.running)
    @rule(place=PLACES, writes=st.lists(WRITES, min_size=1, max_size=8), where=st.floats(0, 1))
    def print_something(self, place: int, writes: list[tuple[Stream, int]], where: float) -> None:
        job = self.running[place % len(self.running)]
        for stream, size in writes:
            job.printed += pattern(stream, job.size(stream), size)
            job.streams.append((stream, size))
            self.order(job, f"{stream.value} {size}")
            self.call(self.captured(job))  # so that the order of the streams is known
        self.read_from(job, where, set(Stream))

    @precondition(lambda self: self.running)
    @rule(place=PLACES, where=st.floats(0, 1))
    def print_much(self, place: int, where: float) -> None:
        self.print_something(place, [(Stream.STDOUT, BIG), (Stream.STDERR, 5), (Stream.STDOUT, 2 * BIG)], where)

    @precondition(lambda self: self.running)
    @rule(place=PLACES, code=st.integers(0, 255))
    def let_exit(self, place: int, code: int) -> None:
        job = self.running[place % len(self.running)]
        self.order(job, f"x {code}")
        assert self.call(self.end_of(job)).cause == Exited(code)
        job.cause = Exited

    @precondition(lambda self: self.kept)
    @rule(place=PLACES, grace=st.sampled_from([0.0, 5.0]))
    def stop(self, place: int, grace: float) -> None:
        self.stop_job(self.kept[place % len(self.kept)], grace)

    def stop_job(self, job: Model, grace: float) -> None:
        self.call(self.engine.stop(job.id, ME, grace))
        job.cause = job.cause or Stopped  # stopping what has ended changes nothing
        assert isinstance(self.call(self.end_of(job)).cause, job.cause)

    @precondition(lambda self: self.running)
    @rule(place=PLACES, torn=st.binary(max_size=39), more=st.binary(max_size=100), engine_runs=st.booleans())
    def kill_supervisor(self, place: int, torn: bytes, more: bytes, engine_runs: bool) -> None:
        """Kill a supervisor, with or without an engine that sees it, and leave the files as if it had been writing."""
        job = self.running[place % len(self.running)]
        pid = self.engine.status(job.id).status.pid
        supervisor = parent_of(pid)
        assert supervisor
        if not engine_runs:
            self.stop_engine()
        os.kill(supervisor, signal.SIGKILL)
        if not engine_runs:
            folder = self.directory / "state" / "jobs" / job.id
            for name, data in (("output", more), ("index", torn)):
                with (folder / name).open("ab") as file:
                    file.write(data)
            self.start_engine()
        assert isinstance(self.call(self.end_of(job)).cause, Lost)
        assert has_ended(pid)
        job.cause = Lost

    @precondition(lambda self: self.ended)
    @rule(place=PLACES)
    def remove(self, place: int) -> None:
        job = self.ended[place % len(self.ended)]
        self.call(self.engine.remove(job.id))
        job.removed = True

    @rule(restart=st.booleans(), delete_the_catalogue=st.booleans())
    def disturb_engine(self, restart: bool, delete_the_catalogue: bool) -> None:
        if restart:
            self.stop_engine()
        if delete_the_catalogue:
            for path in (self.directory / "state").glob("catalog.sqlite*"):
                path.unlink()
        if restart:
            self.start_engine()

    @precondition(lambda self: self.kept)
    @rule(place=PLACES, where=st.floats(0, 1), streams=st.sets(st.sampled_from(Stream), min_size=1))
    def read(self, place: int, where: float, streams: set[Stream]) -> None:
        self.read_from(self.kept[place % len(self.kept)], where, streams)

    def read_from(self, job: Model, where: float, streams: set[Stream]) -> None:
        start = int(where * len(job.printed))
        self.check(job, start, streams, self.call(self.collect(job, start, streams)), whole=True)

    @precondition(lambda self: self.kept)
    @rule(place=PLACES, where=st.floats(0, 1))
    def follow(self, place: int, where: float) -> None:
        job = self.kept[place % len(self.kept)]
        start = int(where * len(job.printed))
        events: list[Output | Gap | JobEnd] = []

        async def run() -> None:
            async for event in log_events(self.engine, job.id, Start(start)):
                events.append(event)  # noqa: PERF401 - one by one, for those that came before a crash count

        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(run())

        self.following.append(Follower(job, start, self.call(begin()), events))

    @precondition(lambda self: self.following)
    @rule(place=PLACES)
    def crash_reader(self, place: int) -> None:
        self.cancel(self.following.pop(place % len(self.following)))

    # What must hold

    @invariant()
    def every_job_is_listed(self) -> None:
        if not hasattr(self, "engine"):
            return
        page = self.call(self.engine.list_jobs(ME.id, states=(), name="", size=100, after=None))
        assert {job.id for job in page.jobs} == {model.id for model in self.models if not model.removed}
        for job in page.jobs:
            model = next(model for model in self.models if model.id == job.id)
            assert job.ended == (model.cause is not None)
            assert (job.stdout_bytes, job.stderr_bytes) == (model.size(Stream.STDOUT), model.size(Stream.STDERR))
            assert len(model.printed) - job.kept_from <= MIN_LOG_BYTES or not model.limited

    def check(
        self, job: Model, start: int, streams: set[Stream], events: list[Output | Gap | JobEnd], *, whole: bool
    ) -> None:
        """Compare what a reader got with the truth."""
        position = start
        for number, event in enumerate(events):
            if isinstance(event, JobEnd):
                assert number == len(events) - 1, "the end is the last event"
                assert (event.stdout.size_bytes, event.stderr.size_bytes) == (
                    job.size(Stream.STDOUT),
                    job.size(Stream.STDERR),
                )
                continue
            where = event.start if isinstance(event, Gap) else event.offset
            assert position <= where, "something is doubled"
            assert not job.owner_of(position, where) & streams, "something is missing"
            if isinstance(event, Gap):
                assert job.limited
                position = event.end
            else:
                position = where + len(event.data)
                assert event.data == job.printed[where:position]
                assert job.owner_of(where, position) == {event.stream}
        if whole:
            assert not job.owner_of(position, len(job.printed)) & streams, "the last output is missing"
            assert isinstance(events[-1], JobEnd) if job.cause is not None else True

    def teardown(self) -> None:
        try:
            if hasattr(self, "engine"):
                for model in self.models:
                    if model.cause is None:
                        self.stop_job(model, 0.0)
                for follower in self.following:
                    self.call(self.finished(follower))
                    whole = not follower.job.removed
                    self.check(follower.job, follower.start, set(Stream), follower.events, whole=whole)
                self.following.clear()
                self.stop_engine()
        finally:
            end_jobs(self.directory / "state")
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()
            for descriptor in self.descriptors:
                os.close(descriptor)
            shutil.rmtree(self.directory)

    # Small parts

    def order(self, job: Model, line: str) -> None:
        with job.orders.open("w") as orders:
            orders.write(line + "\n")

    def cancel(self, follower: Follower) -> None:
        async def cancel() -> None:
            follower.task.cancel()
            await asyncio.wait([follower.task])

        self.call(cancel())
        if not follower.task.cancelled():
            self.call(self.finished(follower))
        self.check(follower.job, follower.start, set(Stream), follower.events, whole=False)

    async def finished(self, follower: Follower) -> None:
        try:
            await follower.task
        except JobNotFound:
            assert follower.job.removed

    async def captured(self, job: Model) -> None:
        end = len(job.printed)
        position = end - job.streams[-1][1]
        async for event in log_events(self.engine, job.id, Start(position)):
            assert not isinstance(event, JobEnd)
            position = event.end if isinstance(event, Gap) else event.offset + len(event.data)
            if position == end:
                return

    async def collect(self, job: Model, start: int, streams: set[Stream]) -> list[Output | Gap | JobEnd]:
        return [event async for event in log_events(self.engine, job.id, Start(start), streams, follow=False)]

    async def end_of(self, job: Model) -> JobEnd:
        async for event in log_events(self.engine, job.id, Start(last=0), set()):
            if isinstance(event, JobEnd):
                return event
        raise AssertionError("the log stopped before its end")


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
