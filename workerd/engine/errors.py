"""What the engine raises.

EngineError
├── JobNotFound
├── JobIdMalformed
├── InvalidArgument
├── CannotStart
│   ├── ProgramNotFound
│   ├── ProgramNotExecutable
│   ├── WorkingDirectoryUnusable
│   ├── AccountUnusable
│   ├── ArgumentsTooLong
│   └── ResourcesExhausted
├── Draining
├── SpawnGivenUp
├── LimitMet
│   ├── TooManyJobs
│   ├── SpawnsTooFast
│   └── RequestTooLarge
├── LauncherFailed
├── StateDirectoryInUse
├── StateDirectoryGone
├── JobNotEnded
├── SpoolCorrupt
│   ├── NeverForced
│   ├── JournalDamaged
│   ├── EndMissing
│   └── FormatTooNew
├── StorageUnfit
├── CatalogFailed
│   ├── CatalogBusy
│   └── CatalogIncomplete
├── NoAnswer
│   ├── StartUnconfirmed
│   └── StopUnconfirmed
└── WatchesExhausted
"""

import errno
from pathlib import Path
from typing import Literal

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
"""The numbers of system errors that say that there is no room on the disk (errno(3)). There may be some later."""

CANNOT_GROW = NO_ROOM | {errno.EFBIG}
"""The numbers of system errors that say that a file cannot grow: there is no room, or the file may not be larger."""

SHORTAGES = CANNOT_GROW | {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ETOOMANYREFS}
"""The numbers of system errors that say that the machine lacks something."""


_QUOTED = 100


def quote(text: str) -> str:
    """Return a text in quotes for an error, and no more than the beginning of a long one."""
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}… ({len(text)} characters)"


class EngineError(Exception):
    """Anything that the engine raises on purpose."""


class JobNotFound(EngineError):
    """No job has this id."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(
            f"there is no job {job_id} that you may see: `List(all_owners=true)` shows all that you may see"
        )


class JobIdMalformed(EngineError):
    """The text is not a UUID in its canonical form (RFC 9562 §4)."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(
            f"{quote(job_id)} is not a job id: it must be a UUID such as 123e4567-e89b-42d3-a456-426614174000"
        )


class InvalidArgument(EngineError):
    """A field of a request has a value that no job could have.

    Args:
        field: the field's name in the request.
        problem: what is wrong with it, as a clause that follows the name.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field} {problem}")


class CannotStart(EngineError):
    """The program could not be started; nothing is left of the job.

    Args:
        subject: the program or directory that it is about.
        problem: what the kernel or the lookup said.
    """

    def __init__(self, subject: str, problem: str) -> None:
        self.subject = subject
        self.problem = problem
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """Describe what failed and what to do, for people."""
        return f"cannot start {self.subject}: {self.problem}"


class ProgramNotFound(CannotStart):
    """No file of this name: neither at the absolute path nor in the job's PATH."""

    def sentence(self) -> str:  # noqa: D102
        return f"program {self.subject} not found: {self.problem}"


class ProgramNotExecutable(CannotStart):
    """The file is there and the kernel will not execute it."""

    def sentence(self) -> str:  # noqa: D102
        return f"program {self.subject} cannot be executed: {self.problem}"


class WorkingDirectoryUnusable(CannotStart):
    """The job cannot be started in this directory."""

    def sentence(self) -> str:  # noqa: D102
        return f"working directory {self.subject} cannot be used: {self.problem}"


class AccountUnusable(CannotStart):
    """No job can be run as this system account."""

    def sentence(self) -> str:  # noqa: D102
        return f"cannot run as {self.subject}: {self.problem}"


class ArgumentsTooLong(CannotStart):
    """Arguments and environment exceed what the kernel takes (execve(2), E2BIG)."""


class ResourcesExhausted(CannotStart):
    """The machine has no processes, memory, descriptors or disk left for another job."""

    def sentence(self) -> str:  # noqa: D102
        return f"{super().sentence()}: make room, or raise the limit, and try again"


class Draining(EngineError):
    """The state directory is being drained."""

    def __init__(self) -> None:
        super().__init__("the daemon takes no new jobs, because it is being drained: try again when it is back")


class SpawnGivenUp(EngineError):
    """Nobody waits for a job any more that was about to be started, so it was not."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was not started: whoever asked for it has gone")


class LimitMet(EngineError):
    """A limit that the engine was given was met.

    Args:
        limit: its name.
        sentence: what was met, and what to do.
    """

    def __init__(self, limit: str, sentence: str) -> None:
        self.limit = limit
        super().__init__(sentence)


class TooManyJobs(LimitMet):
    """As many jobs run as may.

    Args:
        limit: the limit's name.
        whose: of whom so many run, for people.
        most: how many may.
    """

    def __init__(self, limit: str, whose: str, most: int) -> None:
        super().__init__(limit, f"{most} jobs of {whose} run, and no more may ({limit}): let one end, or stop one")


class SpawnsTooFast(LimitMet):
    """An owner starts jobs faster than it may.

    Args:
        per_second: how many it may in the long run.
        wait_seconds: when the next may be.
    """

    def __init__(self, per_second: float, wait_seconds: float) -> None:
        limit = "max-spawns-per-second"
        super().__init__(
            limit,
            f"you start jobs faster than {per_second:g} per second in the long run ({limit}): try again in"
            f" {max(wait_seconds, 0.1):.1f} s",
        )


class RequestTooLarge(LimitMet):
    """A spawn asks for more than it may.

    Args:
        limit: the limit's name.
        what: there is too much of, with the amount.
        most: the amount that may be.
    """

    def __init__(self, limit: str, what: str, most: int) -> None:
        advice = f"pass them in a file, or set --{limit} of workerd higher"
        super().__init__(limit, f"{what} are more than the {most} that are taken ({limit}): {advice}")


class LauncherFailed(EngineError):
    """A supervisor ended before it could say whether the program runs."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"the job's supervisor failed before it could start the program: {detail}")


class StateDirectoryInUse(EngineError):
    """Another daemon holds the state directory."""

    def __init__(self, path: Path, holder: str) -> None:
        self.path = path
        super().__init__(
            f"another workerd (process {holder}) serves the state directory {path}: stop it or choose another one"
        )


class StateDirectoryGone(EngineError):
    """The state directory was removed or moved while a daemon served it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"the state directory {path} was removed or moved: the daemon ends and leaves its jobs running;"
            " to have it serve them again, put the directory back and start workerd"
        )


class SpoolCorrupt(EngineError):
    """A file of a job's folder is not what a supervisor would have written.

    Args:
        path: of the file.
        problem: what is wrong with it, as a clause.
        advice: what to do.
    """

    def __init__(self, path: Path, problem: str, advice: str = "restore the file, or remove the job") -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path} cannot be read: {problem}: {advice}")


class NeverForced(SpoolCorrupt):
    """The power was cut before what was asked for was on the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "it is cut off within its first record")


class JournalDamaged(SpoolCorrupt):
    """A job's journal has a record that does not check.

    Args:
        path: the journal.
        size: how many bytes of it check, from the beginning.
    """

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, f"what it has from byte {size} on does not check")


class EndMissing(SpoolCorrupt):
    """The log has the job's end, and nothing says how the job ended."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "it lacks the job's end, which the log has")


class FormatTooNew(SpoolCorrupt):
    """A file was written by a newer workerd. It is left untouched."""

    def __init__(self, path: Path, version: int) -> None:
        super().__init__(path, f"its format {version} is newer than this workerd knows", "update workerd")


class JobNotEnded(EngineError):
    """What is asked for can only be done to a job that has ended."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} has not ended: stop it first")


class StorageUnfit(EngineError):
    """The file system of the state directory cannot release parts of a file, which a limit for logs needs."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        super().__init__(
            f"the file system of {path} cannot release the oldest output of a log ({problem}): choose another state"
            " directory, or no limit for logs"
        )


class CatalogFailed(EngineError):
    """The catalogue of jobs cannot be read or written."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"the catalogue {path} failed: {problem}")


class CatalogBusy(CatalogFailed):
    """Somebody else has held the catalogue for longer than anybody should.

    Args:
        path: the catalogue.
        waited_seconds: for how long it was waited for.
        problem: who holds it, where that is known, and what to do.
    """

    def __init__(self, path: Path, waited_seconds: float, problem: str = "") -> None:
        super().__init__(path, problem or f"another program has held it for {waited_seconds:g} s: try again")


class CatalogIncomplete(CatalogFailed):
    """The catalogue was deleted or damaged, and the jobs are being entered again."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "it is being made again from the jobs' folders: try again")


class NoAnswer(EngineError):
    """A process, a disk or a service of the daemon's machine did not answer in time.

    Args:
        work: what has not been done, as a noun phrase.
        seconds: how long it was waited for.
        advice: what to do.
    """

    def __init__(self, work: str, seconds: float, advice: str = "") -> None:
        advice = advice or "its disk or a service that it uses may hang: try again, or tell whoever runs it"
        super().__init__(f"{work} took more than {seconds:g} s on the daemon's machine: {advice}")


class StartUnconfirmed(NoAnswer):
    """A job was started, and has not confirmed within a limit that its program runs."""

    def __init__(self, job_id: str, seconds: float) -> None:
        advice = (
            f"it may still begin: `Status(job_id={job_id})` shows it, and so does a spawn with the same `request_key`"
        )
        super().__init__(f"the start of job {job_id}", seconds, advice)


class StopUnconfirmed(NoAnswer):
    """A job was ordered to stop, its processes were sent SIGKILL, and it has not ended within a limit."""

    def __init__(self, job_id: str, seconds: float) -> None:
        advice = (
            "its processes were sent SIGKILL, and one of them, or its disk, may hang; its end is recorded as soon as"
            f" there is one: `Status(job_id={job_id})` shows it"
        )
        super().__init__(f"the end of job {job_id}", seconds, advice)


class WatchesExhausted(EngineError):
    """The daemon's account has no inotify watch left, and nothing can be waited for without one.

    Args:
        what: what there is none of.
    """

    def __init__(self, what: Literal["watch", "instance"] = "watch") -> None:
        limit = "watches" if what == "watch" else "instances"
        advice = "let some followers end" if what == "watch" else "end some of its programs"
        super().__init__(
            f"the daemon's account has no inotify {what} left: {advice}, or raise fs.inotify.max_user_{limit}, and try"
            " again"
        )
