"""What the client raises, and what each status of a call becomes.

ClientError
├── UsageInvalid
├── Unreachable
│   ├── ConnectionLost
│   └── GaveUp
├── Refused
│   └── NotAuthenticated
├── DaemonNotStarted
├── DaemonNotEnded
├── FolderRefused
├── CallFailed
│   ├── ArgumentInvalid
│   ├── Unserved
│   ├── JobNotFound
│   │   └── JobTakenAway
│   ├── ProgramNotFound
│   ├── ProgramNotExecutable
│   ├── Draining
│   └── Unavailable
├── EventUnknown
└── LogDamaged
"""

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import ErrorDetail, ErrorReason

from workerctl.exit_codes import ExitCode
from workerctl.wording import to_command_line


class ClientError(Exception):
    """Anything that the client raises on purpose. Its text is one line for people.

    Args:
        message: that line.
        problem: what went wrong, without what it happened to; the same if not given.

    Attributes:
        exit_code: what a command exits with for it.
        may_pass: whether the call may succeed when it is made again.
    """

    exit_code = ExitCode.FAILED
    may_pass = False

    def __init__(self, message: str, problem: str = "") -> None:
        self.problem = problem or message
        super().__init__(message)


class UsageInvalid(ClientError):
    """The command line asks for what cannot be."""

    exit_code = ExitCode.USAGE


class Unreachable(ClientError):
    """No daemon could be talked to at the endpoint."""

    may_pass = True

    def __init__(self, endpoint: str, problem: str) -> None:
        super().__init__(f"cannot reach a daemon at {endpoint}: {problem}", problem)


class ConnectionLost(Unreachable):
    """The connection broke while a call was under way."""


class GaveUp(Unreachable):
    """A call was made again and again, and always failed. The last failure is the cause (`__cause__`).

    Args:
        endpoint: where the daemon should be.
        problem: the last of them.
        tried_seconds: for how long.
    """

    may_pass = False

    def __init__(self, endpoint: str, problem: str, tried_seconds: float) -> None:
        super().__init__(endpoint, f"{problem} (gave up after {tried_seconds:.0f} s)")


class Refused(ClientError):
    """One side does not take the other's certificate or kind of TLS; trying again does not help."""

    def __init__(self, endpoint: str, problem: str) -> None:
        super().__init__(f"cannot talk to the daemon at {endpoint}: {problem}", problem)


class NotAuthenticated(Refused):
    """What listens at the endpoint does not prove that it is the daemon.

    A client that has talked to the daemon tries again: the daemon may be away for a moment and another program have
    its port.
    """


class DaemonNotStarted(ClientError):
    """The user's own daemon could not be started."""

    may_pass = True


class DaemonNotEnded(ClientError):
    """The user's own daemon did not end in time."""

    def __init__(self, pid: int, seconds: float) -> None:
        super().__init__(
            f"your own daemon (process {pid}) has not ended within {seconds:.0f} s of SIGTERM: `kill -9 {pid}` ends it"
            " and leaves its jobs running"
        )


class FolderRefused(ClientError):
    """The folder of the user's own daemon, or a file in it, can be changed by other accounts."""


class CallFailed(ClientError):
    """The daemon answered with an error.

    Args:
        status: the gRPC status.
        reason: what kind of failure it is.
        message: the daemon's sentence.

    Attributes:
        command: the command that made the call, for `sentence`; empty if it is not known.
        subject: what the failure is about, such as a field of the request; empty for none.
    """

    command = ""
    subject = ""

    def __init__(self, status: Status, reason: ErrorReason, message: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(message)


class ArgumentInvalid(CallFailed):
    """The daemon cannot make sense of what the call asks for."""

    exit_code = ExitCode.USAGE


class Unserved(CallFailed):
    """The daemon knows no such call: it is older, or lacks a plugin."""

    def __init__(self, status: Status, reason: ErrorReason, message: str) -> None:
        super().__init__(
            status, reason, f"{message}; if that has been done, restart it: it looks for them at its start"
        )


class JobNotFound(CallFailed):
    """No job of the caller's has this id."""

    exit_code = ExitCode.NOT_FOUND


class JobUnreadable(CallFailed):
    """The job's files on the daemon's machine are damaged, or of a newer format."""

    exit_code = ExitCode.LOG_DAMAGED


class JobTakenAway(JobNotFound):
    """The caller was just reading the job's log, and may not see the job any more.

    Args:
        answer: what the daemon says, in the same words to whoever never saw it.
    """

    def __init__(self, answer: JobNotFound) -> None:
        super().__init__(
            answer.status,
            answer.reason,
            "you may not see the job any more: its owner took that back, the daemon's policies or roles changed, or it"
            f" was removed; the daemon says: {answer}",
        )


class ProgramNotFound(CallFailed):
    """There is no such program."""

    exit_code = ExitCode.PROGRAM_NOT_FOUND


class ProgramNotExecutable(CallFailed):
    """The program cannot be executed."""

    exit_code = ExitCode.NOT_EXECUTABLE


class Draining(CallFailed):
    """The daemon takes no new jobs; that may last, so the call is not made again by itself."""


class Unavailable(CallFailed):
    """The daemon cannot serve now; the call may be made again."""

    may_pass = True


class EventUnknown(ClientError):
    """The daemon is newer, and says of a log what this client cannot make sense of."""


class LogDamaged(ClientError):
    """What was received is not what the job wrote."""

    exit_code = ExitCode.LOG_DAMAGED


_BY_STATUS: dict[Status, type[CallFailed]] = {
    Status.INVALID_ARGUMENT: ArgumentInvalid,
    Status.UNIMPLEMENTED: Unserved,
    Status.UNAVAILABLE: Unavailable,
}

_BY_REASON: dict[ErrorReason, type[CallFailed]] = {
    ErrorReason.DRAINING: Draining,
    ErrorReason.JOB_NOT_FOUND: JobNotFound,
    ErrorReason.JOB_UNREADABLE: JobUnreadable,
    ErrorReason.PROGRAM_NOT_FOUND: ProgramNotFound,
    ErrorReason.PROGRAM_NOT_EXECUTABLE: ProgramNotExecutable,
}


def from_grpc(error: GRPCError) -> CallFailed:
    """Turn what a call failed with into the client's error."""
    detail = next((detail for detail in error.details or () if isinstance(detail, ErrorDetail)), ErrorDetail())
    kind = _BY_REASON.get(detail.reason) or _BY_STATUS.get(error.status, CallFailed)
    failure = kind(error.status, detail.reason, error.message or error.status.name)
    failure.subject = detail.subject
    return failure


def sentence(error: Exception) -> str:
    """Describe what went wrong in one line for people.

    An error of the system's names the file, if it is about one. The daemon's names options of the command.
    """
    if isinstance(error, CallFailed):
        return to_command_line(str(error), error.command, error.subject)
    if not isinstance(error, OSError):
        return str(error)
    problem = error.strerror or str(error)
    return problem if error.filename is None else f"{error.filename}: {problem}"
