"""What the daemon raises besides the engine's errors, and what each error is on the wire.

DaemonError
├── NotPermitted
│   └── ActingForAnother
├── CannotIssue
├── ShuttingDown
├── LimitReached
├── Unsupported
├── FramingInvalid
├── ConfigurationInvalid
├── CannotListen
├── CannotServe
├── FileSizeLimited
├── TooFewDescriptors
├── DrainFailed
├── UserUnknown
├── PolicyInvalid
├── AuditFailed
├── HandlerFaulty
└── PluginInvalid
"""

import errno
import os
import sqlite3
from collections.abc import Sequence

from grpclib.const import Status
from grpclib.exceptions import GRPCError
from worker_api.worker.v1 import ErrorDetail, ErrorReason

from pki.errors import (
    CertificateExpired,
    CertificateRevoked,
    IdentityInvalid,
    InvalidNarrowing,
    InvalidRequest,
    PkiError,
)
from system.file_lock import LockHeld
from workerd.engine import errors as engine


class DaemonError(Exception):
    """Anything that the daemon raises on purpose."""


class NotPermitted(DaemonError):
    """The caller is known and may not do this.

    Args:
        right: what it takes.
        on: what it was asked for, where that is not a job or the daemon; with a blank before it.
        advice: what to do.
    """

    def __init__(self, right: str, on: str = "", *, advice: str) -> None:
        super().__init__(f"you have no right to {right}{on}: {advice}")


class ActingForAnother(NotPermitted):
    """The caller acts for another user, to whom no certificate is given in this way."""

    def __init__(self) -> None:
        DaemonError.__init__(self, "a certificate is issued to its own user only: ask without acting for another")


class CannotIssue(DaemonError):
    """The daemon has no key to sign certificates with."""

    def __init__(self) -> None:
        super().__init__(
            "this daemon cannot issue certificates: the key of its authority, client-ca.key, is kept elsewhere or"
            " cannot be used: have a certificate issued where that key is, or ask the daemon's operator to put it back"
        )


class ShuttingDown(DaemonError):
    """The daemon is about to end."""

    def __init__(self) -> None:
        super().__init__("the daemon is shutting down; jobs run on: try again when it is back")


class LimitReached(DaemonError):
    """A limit that the daemon is set to was met.

    Args:
        limit: the setting's name.
        problem: what there is too much of, with the amount, as a sentence.
        advice: what to do.
    """

    def __init__(self, limit: str, problem: str, advice: str) -> None:
        self.limit = limit
        super().__init__(f"{problem} ({limit}): {advice}")


class Unsupported(DaemonError):
    """The RPC is unknown, or does not take a request in this form."""


class FramingInvalid(DaemonError):
    """The request does not have the framing of a gRPC message."""


class ConfigurationInvalid(DaemonError):
    """A setting cannot be."""


class CannotListen(DaemonError):
    """The address cannot be listened on.

    Args:
        host: as it was given.
        port: as it was given.
        problem: what the system says.
    """

    def __init__(self, host: str, port: int, problem: str) -> None:
        super().__init__(f"cannot listen on {host}:{port}: {problem}: choose another --listen HOST:PORT")


class CannotServe(DaemonError):
    """An API process says why it cannot serve as things are."""


class FileSizeLimited(DaemonError):
    """The daemon may not write files that are long enough.

    Args:
        limit_bytes: how long they may be.
        least_bytes: how long they must be able to become.
    """

    def __init__(self, limit_bytes: int, least_bytes: int) -> None:
        super().__init__(
            f"a file of the daemon may have {limit_bytes} bytes (RLIMIT_FSIZE), and jobs need {least_bytes}:"
            " raise the hard limit, with `ulimit -f` in the shell or LimitFSIZE= in the unit"
        )


class TooFewDescriptors(DaemonError):
    """The limit on descriptors is too low for a process of the daemon.

    Args:
        limit: the limit.
        least: the number that a process needs.
    """

    def __init__(self, limit: int, least: int) -> None:
        super().__init__(
            f"a process of the daemon may have {limit} descriptors (RLIMIT_NOFILE), and needs {least}: raise the hard"
            " limit, with `ulimit -n` in the shell or LimitNOFILE= in the unit"
        )


class DrainFailed(DaemonError):
    """A daemon could not be drained."""


class UserUnknown(DaemonError):
    """A name is that of no user, or of several.

    Args:
        name: the name.
        ids: of the users who have it.
    """

    def __init__(self, name: str, ids: Sequence[str] = ()) -> None:
        self.ids = ids
        problem = f"names several users ({', '.join(ids)})" if ids else "names no user that has been here yet"
        super().__init__(f"{engine.quote(name)} {problem}: give the id, as `WhoAmI()` shows it to them")


class PolicyInvalid(DaemonError):
    """Policies that cannot be used.

    Args:
        file: where they are.
        problem: what is wrong with them.
    """

    def __init__(self, file: str, problem: str) -> None:
        self.file = file
        self.problem = problem
        super().__init__(f"the policies in {file} cannot be used: {problem}")


class AuditFailed(DaemonError):
    """The audit trail cannot be written.

    Args:
        problem: what the system says.
        advice: what to do.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        advice = advice or (
            "make room on the disk of its state directory, or see that it may write to the folder audit there, and try"
            " again"
        )
        super().__init__(
            f"the daemon cannot write its audit trail ({problem}), and does nothing that is not in it: {advice}"
        )


class HandlerFaulty(DaemonError):
    """A handler raised what no handler may: what would end the daemon, or means that a client has gone.

    Args:
        error: what it was.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"a handler raised {error!r}")


class PluginInvalid(DaemonError):
    """A handler that was found cannot be served: a mistake of the package that offers it.

    Args:
        entry_point: the name of the entry point.
        package: the distribution that it comes from.
        problem: what is wrong with it.
    """

    def __init__(self, entry_point: str, package: str, problem: str) -> None:
        super().__init__(f"the handler {entry_point!r} of the package {package!r} cannot be served: {problem}")


_TABLE: dict[type[Exception], tuple[Status, ErrorReason]] = {
    engine.JobNotFound: (Status.NOT_FOUND, ErrorReason.JOB_NOT_FOUND),
    engine.JobIdMalformed: (Status.INVALID_ARGUMENT, ErrorReason.JOB_ID_MALFORMED),
    engine.InvalidArgument: (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
    engine.ArgumentsTooLong: (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
    engine.ProgramNotFound: (Status.FAILED_PRECONDITION, ErrorReason.PROGRAM_NOT_FOUND),
    engine.ProgramNotExecutable: (Status.FAILED_PRECONDITION, ErrorReason.PROGRAM_NOT_EXECUTABLE),
    engine.WorkingDirectoryUnusable: (Status.FAILED_PRECONDITION, ErrorReason.WORKING_DIRECTORY_UNUSABLE),
    engine.AccountUnusable: (Status.FAILED_PRECONDITION, ErrorReason.ACCOUNT_UNUSABLE),
    engine.CannotStart: (Status.FAILED_PRECONDITION, ErrorReason.PROGRAM_NOT_EXECUTABLE),
    engine.JobNotEnded: (Status.FAILED_PRECONDITION, ErrorReason.JOB_NOT_ENDED),
    engine.SpoolCorrupt: (Status.DATA_LOSS, ErrorReason.JOB_UNREADABLE),
    engine.ResourcesExhausted: (Status.RESOURCE_EXHAUSTED, ErrorReason.RESOURCE_EXHAUSTED),
    engine.WatchesExhausted: (Status.RESOURCE_EXHAUSTED, ErrorReason.RESOURCE_EXHAUSTED),
    engine.LimitMet: (Status.RESOURCE_EXHAUSTED, ErrorReason.LIMIT_REACHED),
    engine.NoAnswer: (Status.DEADLINE_EXCEEDED, ErrorReason.NO_ANSWER),
    LockHeld: (Status.DEADLINE_EXCEEDED, ErrorReason.NO_ANSWER),
    engine.CatalogBusy: (Status.UNAVAILABLE, ErrorReason.BUSY),
    engine.CatalogIncomplete: (Status.UNAVAILABLE, ErrorReason.BUSY),
    engine.SpawnGivenUp: (Status.UNAVAILABLE, ErrorReason.BUSY),
    engine.Draining: (Status.UNAVAILABLE, ErrorReason.DRAINING),
    IdentityInvalid: (Status.UNAUTHENTICATED, ErrorReason.IDENTITY_INVALID),
    CertificateRevoked: (Status.UNAUTHENTICATED, ErrorReason.CERTIFICATE_REVOKED),
    CertificateExpired: (Status.UNAUTHENTICATED, ErrorReason.CERTIFICATE_EXPIRED),
    InvalidRequest: (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
    InvalidNarrowing: (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
    CannotIssue: (Status.FAILED_PRECONDITION, ErrorReason.CANNOT_ISSUE),
    AuditFailed: (Status.RESOURCE_EXHAUSTED, ErrorReason.AUDIT_FAILED),
    NotPermitted: (Status.PERMISSION_DENIED, ErrorReason.NOT_PERMITTED),
    UserUnknown: (Status.FAILED_PRECONDITION, ErrorReason.USER_UNKNOWN),
    PolicyInvalid: (Status.INVALID_ARGUMENT, ErrorReason.ARGUMENT_INVALID),
    LimitReached: (Status.RESOURCE_EXHAUSTED, ErrorReason.LIMIT_REACHED),
    ShuttingDown: (Status.UNAVAILABLE, ErrorReason.SHUTTING_DOWN),
    Unsupported: (Status.UNIMPLEMENTED, ErrorReason.UNSUPPORTED),
    FramingInvalid: (Status.INTERNAL, ErrorReason.FRAMING_INVALID),
}
_ADVICE = {
    errno.EMFILE: "the daemon has no descriptor left, as its limits should prevent: raise RLIMIT_NOFILE, and report it",
    errno.ENFILE: "the machine has no descriptor left: end some programs, or raise fs.file-max",
    errno.ENOMEM: "the daemon has no memory left: ask for less at once, or give it more",
    errno.ENOSPC: "the disk of the state directory is full: make room there",
    errno.EDQUOT: "the disk quota of the daemon's account is used up: make room in the state directory",
    errno.EFBIG: "a file of the daemon would be larger than it may be: raise its limit (RLIMIT_FSIZE)",
    errno.EAGAIN: "the daemon's account may have no more processes: let some jobs end, or raise RLIMIT_NPROC",
}
_SQLITE_SHORTAGES = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_NOMEM: errno.ENOMEM}
_MAX_SENTENCE = 1000
_MAX_SUBJECT = 200
_FAULT = "the daemon met a fault while serving this call; its log tells more"


def to_grpc(error: Exception) -> GRPCError:
    """Turn an error into what the caller gets: a status, a sentence, and a reason in the details.

    INTERNAL stands for a fault of the daemon's, except for `FramingInvalid`, where gRPC has no other status; any other
    status is the caller's affair, or the machine's.
    """
    if (entry := _entry(error)) is not None:
        (status, reason), sentence = entry, str(error)
    elif (shortage := shortage_of(error)) is not None:
        status, reason, sentence = Status.RESOURCE_EXHAUSTED, ErrorReason.RESOURCE_EXHAUSTED, _advise(shortage)
    else:
        status, reason, sentence = Status.INTERNAL, ErrorReason.INTERNAL, _FAULT
    # Both go into headers, whose compression takes time that grows with the square of their length.
    detail = ErrorDetail(reason=reason, subject=_cut(_subject(error), _MAX_SUBJECT))
    return GRPCError(status, _cut(sentence, _MAX_SENTENCE), [detail])


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _entry(error: Exception) -> tuple[Status, ErrorReason] | None:
    """Look an error up, or the nearest of its bases."""
    return next((_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE), None)


def shortage_of(error: BaseException) -> int | None:
    """Return the number, one of `SHORTAGES`, of what the machine lacks, if that caused an error."""
    match error:
        case MemoryError():
            return errno.ENOMEM
        case OSError(errno=int(number)) if number in engine.SHORTAGES:
            return number
        case sqlite3.Error(sqlite_errorcode=code):
            return _SQLITE_SHORTAGES.get(code & 0xFF)  # the low byte is the primary code (sqlite.org/rescode.html)
        case engine.CatalogFailed() | PkiError() | PolicyInvalid() if error.__cause__ is not None:
            return shortage_of(error.__cause__)
        case _:
            return None


def _advise(number: int) -> str:
    """Describe what the machine lacks and what to do."""
    if number in _ADVICE:
        return _ADVICE[number]
    return f"the daemon's machine lacks something ({os.strerror(number)}): make room, or raise the limit"


def _subject(error: Exception) -> str:
    match error:
        case engine.InvalidArgument(field=field):
            return field
        case engine.CannotStart(subject=subject):
            return subject
        case engine.LimitMet(limit=limit) | LimitReached(limit=limit):
            return limit
        case engine.JobNotFound() | engine.JobIdMalformed():
            return "job_id"
        case InvalidRequest():
            return "certificate_request"
        case InvalidNarrowing():
            return "rights"
        case _:
            return ""
