"""Frames for an attacker: valid ones, mutated ones and random ones, a pure function of a source of numbers."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hpack import Encoder
from worker_api.worker.v1 import ListRequest, SpawnRequest, StatusRequest, StreamLogRequest, WhoAmIRequest

from tests.hostile.attacker import SERVICE, message, raw_frame, request_headers

RPCS = ("Spawn", "Stop", "Status", "StreamLog", "Remove", "List", "WhoAmI", "Share", "IssueCredential", "Nothing")
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE = range(6)
_PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = range(6, 10)
_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_MUTATED_IN = 80  # one of so many frames is harmed: most harm ends the connection, and with it what the rest can try
_STRAYS_IN = 250
_JOB_ID = "00000000-0000-4000-8000-000000000000"
_REQUESTS = (
    bytes(WhoAmIRequest()),
    bytes(ListRequest(page_size=3)),
    bytes(StatusRequest(job_id=_JOB_ID)),
    bytes(StreamLogRequest(job_id=_JOB_ID, follow=True)),
    bytes(SpawnRequest(program="/nonexistent/program", args=["a"], name="hostile")),
)


@dataclass
class FrameSource:
    """The frames of one connection, one after another.

    Args:
        source: of all chance.
    """

    source: random.Random
    _encoder: Encoder = field(default_factory=Encoder)
    _next_stream: int = 1
    _open: list[int] = field(default_factory=list)

    def frame(self) -> bytes:
        """Make the next frame; what is not mutated keeps most connections alive."""
        if self.source.randrange(_STRAYS_IN) == 0:
            return self._stray()
        frame = self.source.choices(
            [
                self._headers,
                self._data,
                self._reset,
                self._ping,
                self._settings,
                self._window,
                self._priority,
                self._unknown,
            ],
            [1, 8, 1, 3, 2, 3, 3, 3],
        )[0]()
        return self._mutate(frame) if self.source.randrange(_MUTATED_IN) == 0 else frame

    def _stray(self) -> bytes:
        """Make a frame at random altogether, or one that is not allowed where it comes."""
        source = self.source
        if source.random() < 0.5:
            payload = source.randbytes(source.choice((0, 1, 4, 5, 6, 8, 9, 64, 300)))
            return raw_frame(
                source.randrange(12),
                source.randrange(256),
                source.choice((0, 1, 2, 3, source.getrandbits(32))),
                payload,
            )
        stray: Callable[[], bytes] = source.choice((self._push, self._go_away, self._continuation))
        return stray()

    def _mutate(self, frame: bytes) -> bytes:
        """Harm a frame: its head, its content, or its size."""
        source, harmed = self.source, bytearray(frame)
        match source.randrange(6):
            case 0:
                harmed[source.randrange(len(harmed))] ^= 1 << source.randrange(8)
            case 1:
                harmed[source.randrange(3, 9)] = source.randrange(256)
            case 2:
                harmed[0:3] = source.choice((0, 1, len(harmed), 16384, 16385, (1 << 24) - 1)).to_bytes(3)
            case 3:
                del harmed[source.randrange(len(harmed)) :]
            case 4:
                at = source.randrange(len(harmed))
                harmed[at:at] = source.randbytes(source.randrange(1, 9))
            case _:
                for _ in range(source.randrange(1, 9)):
                    harmed[source.randrange(9, len(harmed)) if len(harmed) > 9 else 4] = source.randrange(256)
        return bytes(harmed)

    def _headers(self) -> bytes:
        source, stream_id = self.source, self._next_stream
        self._next_stream += 2
        headers = request_headers(source.choice(RPCS))
        if source.random() < 0.2:
            headers = self._odd(headers)
        flags = _END_HEADERS | (_END_STREAM if source.random() < 0.2 else 0)
        if not flags & _END_STREAM:
            self._open.append(stream_id)
        block = self._encoder.encode(headers)
        if source.random() < 0.1:
            cut = source.randrange(len(block))
            return raw_frame(_HEADERS, flags & ~_END_HEADERS, stream_id, block[:cut]) + raw_frame(
                _CONTINUATION, _END_HEADERS, stream_id, block[cut:]
            )
        return raw_frame(_HEADERS, flags, stream_id, block)

    def _odd(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        source = self.source
        match source.randrange(4):
            case 0:
                return [*headers, ("grpc-timeout", source.choice(("1m", "0n", "9H", "1", "-1S", "99999999999S")))]
            case 1:
                return [*headers, ("workerd-username", "".join(map(chr, source.choices(range(33, 127), k=20))))]
            case 2:
                return [(name, value + "x" if name == "content-type" else value) for name, value in headers]
            case _:
                return [(name, SERVICE + "../" if name == ":path" else value) for name, value in headers]

    def _data(self) -> bytes:
        source = self.source
        if not self._open:  # on a stream that never was, it ends the connection
            return self._headers()
        stream_id = source.choice(self._open)
        whole = message(source.choice(_REQUESTS))
        payload = source.choice(
            (whole, self._garble(whole), self._garble(whole), source.randbytes(source.randrange(40)), b"")
        )
        end = source.random() < 0.2
        if end and stream_id in self._open:
            self._open.remove(stream_id)
        if source.random() < 0.2:
            padding = source.randrange(256)
            return raw_frame(_DATA, _PADDED | end, stream_id, bytes([padding]) + payload + bytes(padding))
        return raw_frame(_DATA, int(end), stream_id, payload)

    def _garble(self, data: bytes) -> bytes:
        """Harm a message, which is the call's affair and not the connection's."""
        garbled = bytearray(data)
        for _ in range(self.source.randrange(1, 4)):
            garbled[self.source.randrange(len(garbled))] = self.source.randrange(256)
        return bytes(garbled[: self.source.randrange(len(garbled)) or None])

    def _reset(self) -> bytes:
        if not self._open:
            return self._ping()
        stream_id = self._open.pop(self.source.randrange(len(self._open)))
        return raw_frame(_RST_STREAM, 0, stream_id, self.source.randrange(16).to_bytes(4))

    def _ping(self) -> bytes:
        return raw_frame(_PING, 0, 0, self.source.randbytes(8))

    def _settings(self) -> bytes:
        pairs = (
            (1, 4096),
            (2, 0),
            (3, 100),
            (4, 65535),
            (4, 0),
            (5, 16384),
            (6, 1 << 16),
            (99, self.source.getrandbits(32)),
        )
        chosen = self.source.sample(pairs, self.source.randrange(4))
        return raw_frame(_SETTINGS, 0, 0, b"".join(name.to_bytes(2) + value.to_bytes(4) for name, value in chosen))

    def _window(self) -> bytes:
        stream_id = self.source.choice((0, *self._open[-3:]))
        return raw_frame(_WINDOW_UPDATE, 0, stream_id, self.source.randrange(1, 1000).to_bytes(4))

    def _priority(self) -> bytes:
        return raw_frame(_PRIORITY, 0, self.source.randrange(1, 99, 2) + 100_000, self.source.randbytes(5))

    def _unknown(self) -> bytes:
        return raw_frame(self.source.randrange(10, 256), self.source.randrange(256), 0, self.source.randbytes(8))

    def _push(self) -> bytes:
        return raw_frame(_PUSH_PROMISE, _END_HEADERS, 1, (2).to_bytes(4) + self._encoder.encode([("a", "b")]))

    def _go_away(self) -> bytes:
        return raw_frame(_GOAWAY, 0, 0, bytes(4) + self.source.randrange(16).to_bytes(4) + b"bye")

    def _continuation(self) -> bytes:
        return raw_frame(_CONTINUATION, _END_HEADERS, 1, self.source.randbytes(8))


def missing_bytes(data: bytes) -> int:
    """Tell how many bytes the last of the frames that some bytes are read as still lacks."""
    position = 0
    while position < len(data):
        head = data[position : position + 9]
        position += 9 + (int.from_bytes(head[:3]) if len(head) == 9 else 0)
    return position - len(data)
