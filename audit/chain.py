"""The chain: how a line is made, how it is bound to the one before, and what a line says of that. Pure.

A line is one JSON object in ASCII, without blanks, that ends in `"prev":…,"hash":…}` and a newline:

    seq    1 for the first line of a trail, and one more for each that follows
    time   when it was made, ISO 8601 in UTC
    ...    what the event says
    prev   the `hash` of the line before; 64 zeros in the first
    hash   SHA-256, hexadecimal, of the line as it would be without this member and the newline

Every byte of a line is hashed, is part of the hash, or can have one value only. So no other bytes mean the same line,
and whoever checks need not know how numbers and texts would have been written.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

MAX_LINE_BYTES = 1 << 16
RELEASED = "released"
"""The event that says that the lines up to its `last`, a `seq` and a `hash`, were removed to make room."""
RESUMED = "resumed"
"""The event that says that the trail did not end with the line `head`, or lacked it, when a writer went on with it."""
OWN_FIELDS = frozenset({"seq", "time", "prev", "hash"})

_OPENING, _CLOSING = b',"hash":"', b'"}\n'
_HASH_BYTES = 64
_TAIL_BYTES = len(_OPENING) + _HASH_BYTES + len(_CLOSING)
_HEAD_BYTES = 128
_FRAME_BYTES = 512  # more than a line has besides its event
# How long texts and lists may be in an event that is cut: each next one, where they are still too much. No name of a
# user's and no id is longer than any.
_CUTS = ((256, 32), (64, 8), (64, 2))
_DEEPEST = 2
_MOST_ENCODED = 16  # how many times as long as its line an event may be that is encoded whole to be told by its digest
_ITEM_CHARACTERS = 8  # what an item of a list or an object counts besides its text
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class LineInvalid(Exception):
    """A line is none that `make_line` would have made."""


@dataclass(frozen=True, slots=True)
class Head:
    """A line as the next one knows it: its number and its hash."""

    seq: int
    hash: str


GENESIS = Head(0, "0" * _HASH_BYTES)
"""What the first line follows."""


class Link(msgspec.Struct, frozen=True):
    """What a line says of its place in the chain. `event` is what kind of event it tells of, if that is said."""

    seq: int
    time: str
    prev: str
    hash: str
    event: Any = None

    @property
    def head(self) -> Head:
        """The line as the next one knows it."""
        return Head(self.seq, self.hash)


class _Released(msgspec.Struct):
    last: Head


class _Resumed(msgspec.Struct):
    head: Head | None


_decode_link = msgspec.json.Decoder(Link).decode
_decode_released = msgspec.json.Decoder(_Released).decode
_decode_resumed = msgspec.json.Decoder(_Resumed).decode
_decode_head = msgspec.json.Decoder(Head).decode


def make_line(
    event: Mapping[str, Any], before: Head, time: str, most_bytes: int = MAX_LINE_BYTES
) -> tuple[bytes, Head]:
    """Make the line that follows another.

    Args:
        event: what is to be told, as JSON has it. What is longer than a line may be is cut, and the line says so.
        before: the line before.
        time: ISO 8601, in UTC.
        most_bytes: how long the line may be.

    Returns:
        The line with its newline, and what the next one needs to know.

    Raises:
        ValueError: the event has a field that every line has of its own, or a number that is none.
        TypeError: the event has something that JSON does not have.
    """
    if taken := OWN_FIELDS & event.keys():
        raise ValueError(f"an event cannot have the fields {sorted(taken)}: every line has them of its own")
    most = most_bytes - _FRAME_BYTES
    if _is_longer(event, _MOST_ENCODED * most_bytes):  # what is encoded may have six times as many bytes
        told = _encode(_textual(_shorten(event, most // 2)))
    else:
        told = _encode(dict(event))
        if "\\ud" in told and len(told) <= most:
            # Half of a surrogate pair perhaps, as Python has it for bytes that are no text: JSON has not.
            told = _encode(_textual(event))
        if len(told) > most:
            told = _encode(_textual(_shorten(event, most // 2) | _digest(told)))
    fields = f",{told[1:-1]}" if len(told) > 2 else ""
    body = f'{{"seq":{before.seq + 1},"time":{_encode(time)}{fields},"prev":{_encode(before.hash)}}}'.encode()
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + _OPENING + digest.encode() + _CLOSING, Head(before.seq + 1, digest)


def read_line(line: bytes) -> Link:
    """Check a line by itself, and tell its place.

    Raises:
        LineInvalid: with what is wrong with it.
    """
    if not (line.endswith(_CLOSING) and line[-_TAIL_BYTES:].startswith(_OPENING)):
        raise LineInvalid("it does not end with its hash")
    digest = hashlib.sha256(line[:-_TAIL_BYTES] + b"}").hexdigest().encode()
    if line[-_HASH_BYTES - len(_CLOSING) : -len(_CLOSING)] != digest:
        raise LineInvalid("its hash is not that of what it says")
    try:
        return _decode_link(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LineInvalid(f"it is no line of a trail: {error}") from error


def read_released(line: bytes) -> Head:
    """Tell which line was the last that a line with the event `RELEASED` says to have been removed.

    Raises:
        LineInvalid: it does not say.
    """
    try:
        return _decode_released(line).last
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LineInvalid(f"it does not say what was released: {error}") from error


def read_resumed(line: bytes) -> Head | None:
    """Return the head that a line with the event `RESUMED` follows; None if it names none.

    Raises:
        LineInvalid: it does not say.
    """
    try:
        return _decode_resumed(line).head
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LineInvalid(f"it does not say what it follows: {error}") from error


def is_numbered(line: bytes, seq: int) -> bool:
    """Return whether a line begins as the one with this number does."""
    return line.startswith(b'{"seq":%d,' % seq)


def format_head(head: Head) -> bytes:
    """Write a head as the file `head` has it: always of the same length, so that it can be overwritten in place."""
    return _encode({"seq": head.seq, "hash": head.hash}).encode().ljust(_HEAD_BYTES - 1) + b"\n"


def parse_head(data: bytes) -> Head | None:
    """Read what `format_head` wrote; None for anything else."""
    try:
        head = _decode_head(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return head if format_head(head) == data else None


def opens_line(piece: bytes, seq: int) -> bool:
    """Tell whether some bytes are what a line with this number begins with, as far as that is known beforehand."""
    opening = b'{"seq":%d,"time":"' % seq
    return piece[: len(opening)] == opening[: len(piece)]


def _textual(value: Any) -> Any:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case Mapping():
            return {_textual(name): _textual(each) for name, each in value.items()}
        case list() | tuple():
            return [_textual(each) for each in value]
        case _:
            return value


def _is_longer(event: Mapping[str, Any], most: int) -> bool:
    """Return whether an event has more than so many characters; looks at little more than these."""
    left, values = most, list[Any]([event])
    while values and left >= 0:
        value = values.pop()
        if isinstance(value, str):
            left -= len(value)
        elif isinstance(value, Mapping | list | tuple):
            left -= _ITEM_CHARACTERS * len(value)
            if left >= 0:
                values.extend(value)
                if isinstance(value, Mapping):
                    values.extend(value.values())
    return left < 0


def _digest(whole: str) -> dict[str, Any]:
    data = whole.encode()
    return {"cut_from_bytes": len(data), "cut_from_sha256": hashlib.sha256(data).hexdigest()}


def _shorten(event: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Cut long texts and lists, so that a line stays short whoever fills it; each tells how long it was.

    What fills the line goes first: nobody's name is pushed out by what they ask for.
    """
    short: dict[str, Any] = {}
    for texts, items in _CUTS:
        short = {name: _cut(value, texts, items) for name, value in event.items()}
        if len(_encode(short)) <= most:
            return short
    sizes = {name: len(_encode(value)) for name, value in short.items()}
    while sum(sizes.values()) > most:
        largest = max(sizes, key=lambda name: sizes[name])
        short[largest], sizes[largest] = "…", 0
    return short


def _cut(value: Any, texts: int, items: int, depth: int = 0) -> Any:
    match value:
        case str() if len(value) > texts:
            return f"{value[:texts]}… ({len(value)} characters)"
        case Mapping() if depth < _DEEPEST:
            kept = {
                _cut(name, texts, items): _cut(each, texts, items, depth + 1)
                for name, each in islice(value.items(), items)
            }
            return kept if len(value) <= items else kept | {"…": f"({len(value)} members)"}
        case list() | tuple() if depth < _DEEPEST:
            cut = [_cut(each, texts, items, depth + 1) for each in value[:items]]
            return cut if len(value) <= items else [*cut, f"… ({len(value)} items)"]
        case Mapping() | list() | tuple():
            return "…"
        case _:
            return value
