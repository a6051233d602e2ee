"""Those who follow logs: clients in this process, and real workerctl processes."""

import abc
import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from worker_api.worker.v1 import Stream

from tests.faults import repeating
from tests.faults.jobs import Job
from tests.faults.processes import Pauses, Process
from tests.faults.record import Record
from workerctl.client import Client
from workerctl.errors import ClientError
from workerctl.exit_codes import ExitCode

BOTH = (Stream.STDOUT, Stream.STDERR)
_OWN_WORDS = re.compile(rb"workerctl: [^\n]*\n?")


class Follower(abc.ABC):
    """One reader of one job's log.

    Attributes:
        title: what it is, for people.
        streams: which streams it asked for.
        start: where it began in the combined output.
        sees_end: whether it gets events, and so the end as one.
        record: what it got.
        left: it was killed, so it need not have everything.
        reconnects: how often it took its connection up again.
    """

    def __init__(self, job: Job, title: str, streams: Sequence[Stream], start: int, *, sees_end: bool) -> None:
        self.job = job
        self.title = f"{title} of {job.name} from byte {start}"
        self.streams = tuple(streams)
        self.start = start
        self.sees_end = sees_end
        self.record = Record(job.expected, both=len(self.streams) == 2)
        self.left = False
        self.reconnects = 0

    @abc.abstractmethod
    async def run(self) -> None:
        """Follow to the end of the job, or until it is killed."""

    @abc.abstractmethod
    def is_alive(self) -> bool:
        """Tell whether it can be hit now."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End it without warning."""

    def check_end(self, sizes: Mapping[Stream, int], *, lost: bool) -> list[str]:
        """Tell what is wrong with what it got, now that the job has ended.

        Args:
            sizes: how many bytes each stream has.
            lost: whether the job was lost.
        """
        del lost
        problems = list(self.record.problems)
        for stream in self.streams:
            received = self.record.received.get(stream, sizes[stream] if self.start else 0)
            if received > sizes[stream] or (received < sizes[stream] and not self.left):
                problems.append(f"{stream.name} came to byte {received} of {sizes[stream]}")
        if self.start and not self.left and (self.record.position or self.start) != sum(sizes.values()):
            problems.append(f"the output came to byte {self.record.position} of {sum(sizes.values())}")
        if self.sees_end and not self.left and self.record.end is None:
            problems.append("the end never came")
        return [f"{self.title}: {problem}" for problem in problems]

    @abc.abstractmethod
    def pause(self, pauses: Pauses, seconds: float) -> bool:
        """Have it take nothing for a while; return whether it was not so already."""


class LibraryFollower(Follower):
    """Follows with the client library, in this process.

    Args:
        make_client: makes a client that tells the given function of its retries.
    """

    def __init__(
        self,
        job: Job,
        make_client: Callable[[Callable[[str], None]], Client],
        streams: Sequence[Stream],
        start: int,
    ) -> None:
        super().__init__(job, "library client", streams, start, sees_end=True)
        self._make_client = make_client
        self._reading: asyncio.Task[None] | None = None
        self._awake = asyncio.Event()
        self._awake.set()

    async def run(self) -> None:
        self._reading = asyncio.create_task(self._read())
        try:
            await asyncio.wait([self._reading])
        finally:
            self._reading.cancel()
        if not (self.left and self._reading.cancelled()):
            self._reading.result()

    async def _read(self) -> None:
        while True:
            try:
                async with self._make_client(self._retried) as client:
                    log = client.stream_log(self.job.id or "", offset=self.start, streams=self.streams)
                    async for event in log:
                        self.record.event(event)
                        await self._awake.wait()
            except ClientError as error:
                if self.record.compared_bytes or not repeating.had_no_first_contact(error):
                    raise
                self.reconnects += 1
                await asyncio.sleep(0.2)
            else:
                return

    def _retried(self, _: str) -> None:
        self.reconnects += 1

    def is_alive(self) -> bool:
        return self._reading is not None and not self._reading.done()

    def kill(self) -> None:
        self.left = True
        if self._reading is not None:
            self._reading.cancel()

    def pause(self, pauses: Pauses, seconds: float) -> bool:
        del pauses
        if not self._awake.is_set():
            return False
        self._awake.clear()
        asyncio.get_running_loop().call_later(seconds, self._awake.set)
        return True


class ProcessFollower(Follower):
    """A workerctl process whose standard output and error go to files.

    Args:
        command: its command line.
        files: the path that its files' names begin with.
        limit_seconds: how long it may take.
    """

    def __init__(
        self,
        job: Job,
        streams: Sequence[Stream],
        start: int,
        command: Sequence[str],
        files: Path,
        limit_seconds: float,
    ) -> None:
        title = f"workerctl {'run' if isinstance(self, RunFollower) else 'stream-log'}"
        super().__init__(job, title, streams, start, sees_end=len(streams) == 2 and not isinstance(self, RunFollower))
        self.code: int | None = None
        self._command = command
        self._stdout, self._stderr = (files.with_name(files.name + suffix) for suffix in (".stdout", ".stderr"))
        self._limit_seconds = limit_seconds
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        while self.code is None:
            with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
                self._process = await asyncio.create_subprocess_exec(*self._command, stdout=stdout, stderr=stderr)
            try:
                async with asyncio.timeout(self._limit_seconds):
                    code = await self._process.wait()
            except TimeoutError:
                raise TimeoutError(f"waited {self._limit_seconds} s for the end of {self.title}: {self.said}") from None
            finally:
                if self._process.returncode is None:
                    self._process.kill()
                    await self._process.wait()
            self.reconnects += self.said.count("trying again")
            if self.left or not self._is_to_be_repeated(code):
                self.code = code
        self.compare()

    @property
    def said(self) -> str:
        """What it said on standard error."""
        return self._stderr.read_text(errors="replace")[-2000:]

    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self.left = True
            self._process.kill()

    def pause(self, pauses: Pauses, seconds: float) -> bool:
        if self._process is None:
            return False
        try:
            return pauses.pause(Process(self._process.pid, parent=os.getpid()), seconds)
        except ProcessLookupError:
            return False

    def _is_to_be_repeated(self, code: int) -> bool:
        return not self._stdout.stat().st_size and repeating.command_had_no_first_contact(code, self.said)

    def compare(self) -> None:
        if self.streams == BOTH:
            lines = self._stdout.read_bytes().splitlines(keepends=True)
            if self.left and lines and not lines[-1].endswith(b"\n"):
                lines.pop()  # it was killed while it wrote the line
            for line in lines:
                self.record.line(line)
        else:
            self.record.file(self.streams[0], self._stdout)

    def check_end(self, sizes: Mapping[Stream, int], *, lost: bool) -> list[str]:
        code = [f"exit code {self.code}: {self.said}"] if self.code and not self.left else []
        return code + super().check_end(sizes, lost=lost)


class RunFollower(ProcessFollower):
    """A `workerctl run`, which starts the job that it follows.

    What it says itself stands between the job's bytes on standard error. As these are random, it can be taken out.
    """

    def __init__(self, job: Job, command: Sequence[str], files: Path, limit_seconds: float) -> None:
        super().__init__(job, BOTH, 0, command, files, limit_seconds)

    @property
    def said(self) -> str:
        return b"".join(_OWN_WORDS.findall(self._stderr.read_bytes())).decode()

    def compare(self) -> None:
        self.record.file(Stream.STDOUT, self._stdout)
        self.record.bytes_of(Stream.STDERR, 0, _OWN_WORDS.sub(b"", self._stderr.read_bytes()))
        if not self.record.compared_bytes and repeating.run_gave_up_before_its_job_was_known(self.code, self.said):
            self.left = True
        self.job.given_up = self.left

    def check_end(self, sizes: Mapping[Stream, int], *, lost: bool) -> list[str]:
        expected = ExitCode.JOB_LOST if lost else self.job.plan.exit_code
        code = [f"exit code {self.code} and not {expected}: {self.said}"] if self.code != expected else []
        return Follower.check_end(self, sizes, lost=lost) + ([] if self.left else code)

    def _is_to_be_repeated(self, code: int) -> bool:
        del code
        return False
