"""What is answered to a spawn: one short message on a pipe. Pure: values in, bytes out, and back.

A supervisor answers the engine, and the process that is to become the program answers its supervisor.
"""

import msgspec

from workerd.engine import errors
from workerd.engine.errors import CannotStart

STARTED = b"started"
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
    return msgspec.json.encode(_Failure(type(error).__name__, error.subject, error.problem))


def decode_failure(data: bytes) -> CannotStart:
    """Decode what `encode_failure` made.

    Raises:
        ValueError: it did not make this.
    """
    failure = msgspec.json.decode(data, type=_Failure)
    if failure.kind not in _KINDS:
        raise ValueError(f"{failure.kind} is no failure to start")
    return _KINDS[failure.kind](failure.subject, failure.problem)
