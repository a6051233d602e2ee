"""What an engine and a supervisor say to each other while a job is started. Pure: values in, bytes out, and back.

Each message is one packet (unix(7), SOCK_SEQPACKET). The supervisor says READY; the engine says GO; the supervisor says
STARTED, or why the program does not run. Without GO nothing is executed, so a spawn that was given up never runs. The
process that is to become the program answers its supervisor in the same words, on a pipe.
"""

import msgspec

from workerd.engine import errors
from workerd.engine.errors import CannotStart

READY = b"ready"
GO = b"go"
STARTED = b"started"
LONGEST = 1 << 16
_LONGEST_TEXT = 4096
_KINDS: dict[str, type[CannotStart]] = {
    kind.__name__: kind
    for kind in (
        errors.CannotStart,
        errors.ProgramNotFound,
        errors.ProgramNotExecutable,
        errors.WorkingDirectoryUnusable,
        errors.AccountUnusable,
        errors.ArgumentsTooLong,
        errors.ResourcesExhausted,
    )
}


class _Failure(msgspec.Struct):
    kind: str
    subject: str
    problem: str


def encode_failure(error: CannotStart) -> bytes:
    """Encode why the program does not run."""
    subject, problem = error.subject[:_LONGEST_TEXT], error.problem[:_LONGEST_TEXT]
    return msgspec.json.encode(_Failure(type(error).__name__, subject, problem))


def decode_failure(data: bytes) -> CannotStart:
    """Decode what `encode_failure` made.

    Raises:
        ValueError: it did not make this.
    """
    failure = msgspec.json.decode(data, type=_Failure)
    if failure.kind not in _KINDS:
        raise ValueError(f"{failure.kind} is no failure to start")
    return _KINDS[failure.kind](failure.subject, failure.problem)
