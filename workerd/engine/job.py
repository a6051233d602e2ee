"""What a job is: what was asked for, where it stands, how it ended.

These records are also what the job's folder holds as JSON, so their field names are part of the spool's format.
"""

import enum
import uuid
from typing import Annotated

import msgspec

from workerd.engine.errors import JobIdMalformed

FORMAT_VERSION = 3
"""1: as it began. 2: a log may have been released in part, and the header of its index says so. 3: a journal in the
place of several files, and checksums of all that is written."""
DEFAULT_GRACE_SECONDS = 10.0
_JOB_ID_CHARACTERS = 36


class Stream(enum.IntEnum):
    """One of the two streams that a job prints to; the numbers are those of the file descriptors."""

    STDOUT = 1
    STDERR = 2


Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A time since 1970, up to the year 2262."""
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{32})?$")]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class JobState(enum.StrEnum):
    """Where a job is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"
    DAMAGED = "damaged"
    """Its files cannot be read. No file says so."""


class Durability(enum.StrEnum):
    """When a job's log is forced to the disk: at its end, or also every few seconds while it grows."""

    EXIT = "exit"
    INTERVAL = "interval"


class User(msgspec.Struct, frozen=True):
    """Somebody who owns or stops jobs. `id` decides, `name` is for people."""

    id: str
    name: str


class Share(msgspec.Struct, frozen=True):
    """What somebody may do with another's job. What a right means is for whoever decides on rights; they are sorted."""

    user: User
    rights: tuple[str, ...]


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A system account as a process takes it on: its numbers (credentials(7)), and what its programs expect to find."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for.

    Attributes:
        program: an absolute path, or a name that is looked up in the job's PATH.
        envs: added to the base environment, winning over it.
        working_directory: an absolute path.
        timeout_seconds: how long the program may run; None is for ever.
        grace_seconds: between SIGTERM and SIGKILL when the timeout ran out.
        request_key: what makes a repeated spawn find this job; empty when there is none.
        max_log_bytes: how much of the disk the log may take; zero for any amount. Beyond it the oldest output goes.
        created_ns: when the job was accepted, nanoseconds since the epoch.
        spawned_by: who asked for the job, if that was somebody who acted for its owner.
        account: whose processes the program and all that it starts are, as it was then; None for the daemon's own.
    """

    id: str
    owner: User
    program: str
    args: tuple[str, ...] = ()
    envs: dict[str, str] = {}
    working_directory: str
    name: str = ""
    timeout_seconds: Seconds | None = None
    grace_seconds: Seconds = DEFAULT_GRACE_SECONDS
    request_key: str = ""
    max_log_bytes: int = 0
    durability: Durability = Durability.EXIT
    created_ns: Nanoseconds
    spawned_by: User | None = None
    account: Account | None = None
    format: int = FORMAT_VERSION

    @property
    def run_as(self) -> str:
        """The name of the account that the job runs as; empty for the daemon's own."""
        return self.account.name if self.account is not None else ""


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """The program ended by itself, with a code of 0 to 255."""

    code: int


class Killed(msgspec.Struct, frozen=True, tag="killed"):
    """A signal that nobody of ours sent ended the program."""

    signal: int


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """Somebody stopped the job. `signal` is the last one sent, `outcome` what became of the program itself."""

    by: User
    signal: int
    outcome: Exited | Killed


class TimedOut(msgspec.Struct, frozen=True, tag="timed_out"):
    """The timeout ran out. `signal` is the last one sent."""

    timeout_seconds: Seconds
    signal: int


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """Nobody saw how the job ended."""

    detail: str


Cause = Exited | Killed | Stopped | TimedOut | Lost


class StreamSummary(msgspec.Struct, frozen=True):
    """What a whole stream amounted to: its size and the hexadecimal XXH3-128 digest of its bytes (seed 0).

    The digest is empty when nobody can tell it: the job was lost after some of its log had been released.
    """

    size_bytes: Bytes
    xxh3_128: Digest


class JobEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How and when a job ended.

    Attributes:
        started_ns: nanoseconds since the epoch; so is `ended_ns`.
        peak_memory_bytes: maxrss of getrusage(2); zero where that is not known.
        log_ended_early: why the log ended before the job did, for people; empty when the log is complete.
    """

    cause: Cause
    started_ns: Nanoseconds
    ended_ns: Nanoseconds
    user_cpu_seconds: Seconds
    system_cpu_seconds: Seconds
    peak_memory_bytes: Bytes
    stdout: StreamSummary
    stderr: StreamSummary
    log_ended_early: str = ""


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job stands, as its supervisor writes it at each step.

    Attributes:
        pid: the program's process; zero before it was started.
        cgroup: the path of the job's own cgroup2 directory, in formats 1 and 2; empty where there is none.
        waits_for_room: whether the disk is full, so that no more output is taken until there is room.
        log_ended_early: as in `JobEnd`, as soon as it is known.
    """

    state: JobState
    pid: int = 0
    started_ns: Nanoseconds = 0
    cgroup: str = ""
    waits_for_room: bool = False
    log_ended_early: str = ""
    end: JobEnd | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stands.

    Attributes:
        stdout_bytes, stderr_bytes: captured so far.
        kept_from: the offset before which the output has been released.
        args_cut: whether `spec.args` are only the first of the arguments, and the last one perhaps a part of one.
    """

    spec: JobSpec
    status: JobStatus
    stdout_bytes: int
    stderr_bytes: int
    kept_from: int = 0
    args_cut: bool = False

    @property
    def id(self) -> str:
        """The job's UUID as text."""
        return self.spec.id

    @property
    def ended(self) -> bool:
        """Whether the job is over and its log complete."""
        return self.status.state is JobState.ENDED


class DamagedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job whose files cannot be read.

    Attributes:
        owner: as far as it is known; its id or name may be empty.
        created_ns: when it was made, or last changed, nanoseconds since the epoch.
        damage: what is wrong, for people.
    """

    id: str
    owner: User
    created_ns: int
    damage: str


class StopOrder(msgspec.Struct, frozen=True):
    """What is written to a supervisor's control pipe. `grace_seconds` of zero is SIGKILL at once.

    Attributes:
        kills: whether the daemon kills the job's processes next, because the supervisor does not act.
    """

    by: User
    grace_seconds: float
    kills: bool = False


def parse_job_id(text: str) -> str:
    """Check that a text is a UUID in canonical form and return it in lower case.

    Raises:
        JobIdMalformed: it is not.
    """
    if len(text) != _JOB_ID_CHARACTERS:  # a longer one takes `UUID` long to refuse
        raise JobIdMalformed(text)
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        raise JobIdMalformed(text) from None
    if canonical != text.lower():
        raise JobIdMalformed(text)
    return canonical
