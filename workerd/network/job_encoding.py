"""The wire format of a job with all of its arguments and variables, of which there may be very many.

They are written without building messages: betterproto2 takes a dozen times as long, during which the daemon serves no
other call. Field numbers and types are those of `StatusResponse` and `Job` in api.proto; a test has betterproto2 read
the bytes.
"""

from collections.abc import Iterable, Mapping

import msgspec

from workerd.engine.job import Job
from workerd.network.codec import Encoded
from workerd.network.encoding import frame, varint
from workerd.translate import to_job

# Tags: field number << 3 | wire type (https://protobuf.dev/programming-guides/encoding, "Message Structure").
_RESPONSE_JOB, _ARGS, _ENVS, _KEY, _VALUE = b"\x0a", b"\x2a", b"\x92\x01", b"\x0a", b"\x12"


def encode_status(job: Job, *, with_envs: bool) -> Encoded:
    """Encode a StatusResponse.

    Args:
        with_envs: whether it has the environment variables of the spawn.
    """
    spec = job.spec
    rest = bytes(to_job(msgspec.structs.replace(job, spec=msgspec.structs.replace(spec, args=()))))
    parts = [rest, *_texts(_ARGS, spec.args), *(_entries(_ENVS, spec.envs) if with_envs else ())]
    size = sum(map(len, parts))
    return Encoded(b"".join(frame(_RESPONSE_JOB, varint(size), *parts)))


def _texts(tag: bytes, texts: Iterable[str]) -> list[bytes]:
    parts: list[bytes] = []
    for text in texts:
        data = text.encode()
        parts += (tag, varint(len(data)), data)
    return parts


def _entries(tag: bytes, texts: Mapping[str, str]) -> list[bytes]:
    parts: list[bytes] = []
    for name, value in texts.items():
        entry = b"".join((*_texts(_KEY, (name,)), *_texts(_VALUE, (value,))))
        parts += (tag, varint(len(entry)), entry)
    return parts
