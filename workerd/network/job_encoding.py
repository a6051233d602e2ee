"""The wire format of jobs with all of their arguments and variables, of which there may be very many.

They are written without building messages: betterproto2 takes a dozen times as long, during which the daemon serves no
other call. Field numbers and types are those of `StatusResponse`, `ListResponse` and `Job` in api.proto; a test has
betterproto2 read the bytes.
"""

from collections.abc import Awaitable, Callable, Iterable

import msgspec

from workerd.engine.job import DamagedJob, Job
from workerd.network.codec import Encoded
from workerd.network.encoding import frame, varint
from workerd.translate import to_job, to_row

# Tags: field number << 3 | wire type (https://protobuf.dev/programming-guides/encoding, "Message Structure").
_RESPONSE_JOB, _ARGS, _ENVS, _KEY, _VALUE = b"\x0a", b"\x2a", b"\x92\x01", b"\x0a", b"\x12"
_RESPONSE_JOBS, _NEXT_PAGE_TOKEN = b"\x0a", b"\x12"
_AT_ONCE = 4096  # as many as a job may have, unless the daemon is set to take more


async def encode_status(job: Job, *, with_envs: bool, pause: Callable[[], Awaitable[None]]) -> Encoded:
    """Encode a StatusResponse.

    Args:
        with_envs: whether it has the environment variables of the spawn.
        pause: awaited between the parts of long work.
    """
    args = job.spec.args
    parts = [bytes(to_job(_without_args(job)))]
    for start in range(0, len(args), _AT_ONCE):
        if start:
            await pause()
        parts.append(_texts(_ARGS, args[start : start + _AT_ONCE]))
    if with_envs:
        envs = [*job.spec.envs.items()]
        for start in range(0, len(envs), _AT_ONCE):
            await pause()
            parts.append(_entries(_ENVS, envs[start : start + _AT_ONCE]))
    size = sum(map(len, parts))
    return Encoded(b"".join(frame(_RESPONSE_JOB, varint(size), *parts)))


def encode_row(row: Job | DamagedJob) -> bytes:
    """Encode a job of a list."""
    if not isinstance(row, Job):
        return bytes(to_row(row))
    return bytes(to_row(_without_args(row))) + _texts(_ARGS, row.spec.args)


def encode_list(rows: Iterable[bytes], next_page_token: str) -> Encoded:
    """Encode a ListResponse of jobs that `encode_row` has encoded."""
    parts = [part for row in rows for part in (_RESPONSE_JOBS, varint(len(row)), row)]
    if next_page_token:
        parts.append(_texts(_NEXT_PAGE_TOKEN, (next_page_token,)))
    return Encoded(b"".join(frame(*parts)))


def _without_args(job: Job) -> Job:
    return msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, args=()))


def _texts(tag: bytes, texts: Iterable[str]) -> bytes:
    data = bytearray()
    for text in texts:
        encoded = text.encode()
        data += tag
        data += varint(len(encoded))
        data += encoded
    return bytes(data)


def _entries(tag: bytes, texts: Iterable[tuple[str, str]]) -> bytes:
    parts: list[bytes] = []
    for name, value in texts:
        entry = _texts(_KEY, (name,)) + _texts(_VALUE, (value,))
        parts += (tag, varint(len(entry)), entry)
    return b"".join(parts)
