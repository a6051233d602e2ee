"""Checking the bytes of a request before betterproto2 reads them.

betterproto2 reads a field that ends too early as far as it goes, stops without a word at an unfinished tag, takes what
is in a group for fields, and puts a number into a text's place when the wire type says so. All of that is refused here,
at every depth (https://protobuf.dev/programming-guides/encoding).

The parts are counted as well: betterproto2 takes time for each of them, and keeps what it does not know.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
        ValueError: they are not.
    """
    _check(data, message_type, _Count())


def _check(data: bytes, message_type: Any, count: _Count) -> None:
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
        if field.proto_type in ("message", "map"):
            _check(content, field.unwrap() if field.unwrap else known.cls_by_field[name], count)


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
