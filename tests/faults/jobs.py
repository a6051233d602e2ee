"""The jobs of a run, and what each of them must print."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from worker_api.worker.v1 import SpawnRequest, Stream

from tests.faults.schedule import StartJob
from tests.programs import babble
from workerd.engine.folder import JobFolder
from workerd.engine.job import JobState, JobStatus


@dataclass(eq=False)
class Job:
    """One job, whether or not the daemon has been heard to have started it.

    Attributes:
        plan: what it is told to do.
        directory: where all jobs have their folders.
        diary: the file to which the program adds its job's id when it starts.
        acknowledged: the id that the daemon has answered with, if it has.
        given_up: nobody asks for it any more, though no answer has come.
        doomed: its supervisor was killed before it had ended.
    """

    plan: StartJob
    directory: Path
    diary: Path
    acknowledged: str | None = None
    given_up: bool = False
    doomed: bool = False

    @property
    def name(self) -> str:
        """The job's label."""
        return f"job-{self.plan.number}"

    @property
    def command(self) -> list[str]:
        """The program and its arguments."""
        plan = self.plan
        told = (str(self.diary), str(plan.seed), str(plan.size_bytes), str(plan.seconds), str(plan.exit_code))
        return [sys.executable, "-I", "-S", babble.__file__, *told]

    @property
    def request(self) -> SpawnRequest:
        """What to ask the daemon for; the same each time."""
        program, *args = self.command
        return SpawnRequest(program=program, args=args, name=self.name, request_key=self.name)

    @functools.cached_property
    def expected(self) -> dict[Stream, bytes]:
        """Every byte that the program writes."""
        written: dict[Stream, list[bytes]] = {Stream.STDOUT: [], Stream.STDERR: []}
        for descriptor, data, _ in babble.writes(self.plan.seed, self.plan.size_bytes, self.plan.seconds):
            written[Stream(descriptor)].append(data)
        return {stream: b"".join(pieces) for stream, pieces in written.items()}

    def runs(self) -> list[str]:
        """The job's id, once for each time that the program was executed."""
        return self.diary.read_text().splitlines() if self.diary.exists() else []

    @property
    def id(self) -> str | None:
        """The job's id, if anybody knows it yet."""
        return self.acknowledged or next(iter(self.runs()), None)

    @property
    def folder(self) -> JobFolder:
        """Where the job is written down; only of a job whose id is known."""
        if self.id is None:
            raise AssertionError(f"nobody knows the id of {self.name}")
        return JobFolder(self.directory / self.id)

    def status(self) -> JobStatus | None:
        """Where the job stands on the disk."""
        return None if self.id is None else self.folder.read_status()

    def is_running(self) -> bool:
        """Tell whether the program has started and the job has not ended."""
        status = self.status()
        return status is not None and status.pid != 0 and status.state is not JobState.ENDED

    def has_ended(self) -> bool:
        """Tell whether the job's end is written down."""
        status = self.status()
        return status is not None and status.state is JobState.ENDED
