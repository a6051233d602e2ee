"""Checking the bytes of a request before betterproto2 reads them.

betterproto2 reads a field that ends too early as far as it goes, stops without a word at an unfinished tag, takes what
is in a group for fields, and puts a number into a text's place when the wire type says so. All of that is refused here,
at every depth (https://protobuf.dev/programming-guides/encoding).

It also takes any number for an enum, and fails on, or alters, a Duration or Timestamp that is out of range
(google/protobuf/duration.proto, timestamp.proto); and it fails on text that is not UTF-8 in the words of Python. All of
these are refused by the name of their field.

The parts are counted as well: betterproto2 takes time for each of them, and keeps what it does not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workerd.engine.errors import InvalidArgument

_VARINT, _FIXED_64, _LENGTH, _FIXED_32 = 0, 1, 2, 5
_WIDTHS = {_FIXED_64: 8, _FIXED_32: 4}
_WIRE_TYPES = {
    **dict.fromkeys(("string", "bytes", "message", "map"), _LENGTH),
    **dict.fromkeys(("fixed32", "sfixed32", "float"), _FIXED_32),
    **dict.fromkeys(("fixed64", "sfixed64", "double"), _FIXED_64),
}
# More than any argument list that a shell makes.
MAX_FIELDS = 1 << 18
MAX_UNKNOWN_BYTES = 1 << 16  # what a later contract adds is short
_LAST_NANO = 10**9 - 1
_MICROSECOND_NANOS = 1000
_MAX_DURATION_SECONDS = 315_576_000_000
_TIMESTAMP_SECONDS = range(-62_135_596_800, 253_402_300_800)  # the years 1 to 9999


@dataclass(slots=True)
class _Count:
    """What a message has so far."""

    fields: int = 0
    unknown_bytes: int = 0

    def add(self, fields: int, unknown_bytes: int = 0) -> None:
        """Count some more.

        Raises:
            ValueError: it is too much.
        """
        self.fields += fields
        self.unknown_bytes += unknown_bytes
        if self.fields > MAX_FIELDS:
            raise ValueError(f"it has more than {MAX_FIELDS} parts")
        if self.unknown_bytes > MAX_UNKNOWN_BYTES:
            raise ValueError(f"it has more than {MAX_UNKNOWN_BYTES} bytes in fields that this daemon does not know")


def check(data: bytes, message_type: Any) -> None:
    """Check that bytes are a message of a type, and one that can be afforded.

    Args:
        message_type: a class that betterproto2 generated.

    Raises:
        InvalidArgument: a field has a value that its type does not have.
        ValueError: they are not.
    """
    _check(data, message_type, _Count())


def _check(data: bytes, message_type: Any, count: _Count, path: str = "") -> None:
    known = message_type._betterproto
    chosen: dict[str, str] = {}
    for number, wire_type, content in _fields(data):
        name = known.field_name_by_number.get(number)
        if name is None:
            count.add(1, len(content))
            continue
        field = known.meta_by_field_name[name]
        expected = _WIRE_TYPES.get(field.proto_type, _VARINT)
        packed = field.repeated and wire_type == _LENGTH
        if wire_type != expected and not packed:
            raise ValueError(f"the field {name} has the wire type {wire_type} instead of {expected}")
        count.add(1 if wire_type == expected else 1 + len(content) // _WIDTHS.get(expected, 1))
        if field.group and chosen.setdefault(field.group, name) != name:
            raise ValueError(f"{chosen[field.group]} and {name} exclude each other")
        if field.proto_type == "string":
            _check_text(path + name, content)
        elif field.proto_type == "enum":
            _check_enum(path + name, content, known.cls_by_field[name])
        elif field.proto_type == "map":
            try:
                _check(content, known.cls_by_field[name], count)
            except InvalidArgument as error:  # an entry has no name of its own
                raise InvalidArgument(path + name, error.problem) from error
        elif field.proto_type == "message":
            kind = field.unwrap() if field.unwrap else known.cls_by_field[name]
            _check(content, kind, count, f"{path}{name}.")
            if field.unwrap and kind.__name__ in _CHECKS:
                _CHECKS[kind.__name__](path + name, content)


def _check_text(field: str, content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(field, f"is not UTF-8 at byte {error.start}") from error


def _check_enum(field: str, content: bytes, kind: Any) -> None:
    position = 0
    while position < len(content):
        value, position = _varint(content, position)
        number = _signed(value, 32)
        if number not in kind._value2member_map_:
            raise InvalidArgument(field, f"cannot be {number}, which is not a {kind.__name__}")


def _check_duration(field: str, content: bytes) -> None:
    seconds, nanos = _seconds_and_nanos(content)
    if abs(seconds) > _MAX_DURATION_SECONDS:
        problem = f"cannot be {seconds} seconds: a Duration is at most {_MAX_DURATION_SECONDS} long"
    elif abs(nanos) > _LAST_NANO:
        problem = f"cannot have {nanos} nanos: a Duration has at most {_LAST_NANO}"
    elif seconds == 0 and -_MICROSECOND_NANOS < nanos < 0:  # which `timedelta` takes for zero
        problem = f"cannot be {nanos} nanos: it is negative, and shorter than a microsecond"
    elif seconds * nanos < 0:
        problem = f"cannot be {seconds} seconds and {nanos} nanos: a Duration has one sign"
    else:
        return
    raise InvalidArgument(field, problem)


def _check_timestamp(field: str, content: bytes) -> None:
    seconds, nanos = _seconds_and_nanos(content)
    if seconds not in _TIMESTAMP_SECONDS:
        problem = f"cannot be {seconds} seconds from 1970: a Timestamp is in the years 1 to 9999"
    elif not 0 <= nanos <= _LAST_NANO:
        problem = f"cannot have {nanos} nanos: a Timestamp has 0 to {_LAST_NANO}"
    else:
        return
    raise InvalidArgument(field, problem)


_CHECKS = {"Duration": _check_duration, "Timestamp": _check_timestamp}


def _seconds_and_nanos(content: bytes) -> tuple[int, int]:
    values = {number: _varint(value, 0)[0] for number, wire_type, value in _fields(content) if wire_type == _VARINT}
    return _signed(values.get(1, 0), 64), _signed(values.get(2, 0), 32)


def _signed(value: int, bits: int) -> int:
    """Return what a number means as int32 or int64 (two's complement, of which the low bits count)."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError(f"{number} is not the number of a field")
        start = position
        match wire_type:
            case 0:
                _, position = _varint(data, position)
            case 1 | 5:
                position += _WIDTHS[wire_type]
            case 2:
                length, start = _varint(data, position)
                position = start + length
            case _:
                raise ValueError(f"the field {number} has the wire type {wire_type}")
        if position > len(data):
            raise ValueError(f"the field {number} ends {position - len(data)} bytes after the message")
        yield number, wire_type, data[start:position]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position == len(data):
            raise ValueError("the message ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than ten bytes")
