"""Damage as pure functions on bytes: each returns the damaged bytes and a description of the change."""

import enum
from collections.abc import Callable
from random import Random

_LONGEST_RANGE_BYTES = 4096
_MOST_GARBAGE_BYTES = 512


class Operation(enum.StrEnum):
    """One way to damage a file."""

    FLIP_BIT = "flip a bit"
    FLIP_BYTE = "flip a byte"
    ZERO = "zero a range"
    TRUNCATE = "truncate"
    SWAP_RANGES = "swap two ranges"
    GARBAGE = "write garbage over a range"
    APPEND = "append garbage"
    SWAP_FILES = "swap with another job's file"
    REMOVE = "remove"
    EMPTY = "replace by an empty file"
    DIRECTORY = "replace by a directory"


Change = tuple[bytes, str]


def flip_bit(data: bytes, random: Random) -> Change:
    """Invert one bit."""
    offset, bit = random.randrange(len(data)), random.randrange(8)
    changed = bytearray(data)
    changed[offset] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {offset} of {len(data)} was inverted"


def flip_byte(data: bytes, random: Random) -> Change:
    """Replace one byte by another value."""
    offset = random.randrange(len(data))
    changed = bytearray(data)
    changed[offset] ^= random.randrange(1, 256)
    return bytes(changed), f"byte {offset} of {len(data)} became {changed[offset]:#04x}"


def zero(data: bytes, random: Random) -> Change:
    """Overwrite a range with NUL bytes; half of the time up to the end, as a power cut does."""
    start, end = _range(data, random)
    if random.random() < 0.5:
        end = len(data)
    return data[:start] + bytes(end - start) + data[end:], f"bytes {start} to {end} of {len(data)} were zeroed"


def truncate(data: bytes, random: Random) -> Change:
    """Cut the end off."""
    size = random.randrange(len(data))
    return data[:size], f"{len(data)} bytes were truncated to {size}"


def swap_ranges(data: bytes, random: Random) -> Change:
    """Exchange two ranges of the same length that do not overlap."""
    length = _length(len(data) // 2, random)
    first = random.randrange(len(data) - 2 * length + 1)
    second = random.randrange(first + length, len(data) - length + 1)
    changed = bytearray(data)
    changed[first : first + length] = data[second : second + length]
    changed[second : second + length] = data[first : first + length]
    return bytes(changed), f"{length} bytes at {first} and at {second} of {len(data)} were swapped"


def garbage(data: bytes, random: Random) -> Change:
    """Overwrite a range with random bytes."""
    start, end = _range(data, random)
    changed = data[:start] + random.randbytes(end - start) + data[end:]
    return changed, f"bytes {start} to {end} of {len(data)} became garbage"


def append(data: bytes, random: Random) -> Change:
    """Add random bytes at the end."""
    length = _length(_MOST_GARBAGE_BYTES, random)
    return data + random.randbytes(length), f"{length} bytes of garbage were appended to {len(data)}"


_FUNCTIONS: dict[Operation, tuple[int, Callable[[bytes, Random], Change]]] = {
    Operation.FLIP_BIT: (1, flip_bit),
    Operation.FLIP_BYTE: (1, flip_byte),
    Operation.ZERO: (1, zero),
    Operation.TRUNCATE: (1, truncate),
    Operation.SWAP_RANGES: (2, swap_ranges),
    Operation.GARBAGE: (1, garbage),
    Operation.APPEND: (0, append),
}
"""The operations on bytes, each with the fewest bytes that it needs."""
ON_BYTES = frozenset(_FUNCTIONS)
_ATTEMPTS = 20


def change(operation: Operation, data: bytes, random: Random) -> Change | None:
    """Damage some bytes.

    Args:
        operation: one of `ON_BYTES`.

    Returns:
        The damaged bytes and a description; None when the operation cannot change these bytes.
    """
    fewest, function = _FUNCTIONS[operation]
    if len(data) < fewest:
        return None
    for _ in range(_ATTEMPTS):
        changed, description = function(data, random)
        if changed != data:
            return changed, description
    return None


def differing_range(before: bytes, after: bytes) -> tuple[int, int]:
    """Return the start and the end of the range of `after` that differs from `before`, as far as both go."""
    size = min(len(before), len(after))
    start = _common(before, after, size)
    if start == size:
        return size, size
    return start, size - _common(before[start:size][::-1], after[start:size][::-1], size - start)


def _common(one: bytes, other: bytes, size: int) -> int:
    """Count the bytes at the beginning that are equal, by bisection."""
    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _range(data: bytes, random: Random) -> tuple[int, int]:
    length = _length(len(data), random)
    start = random.randrange(len(data) - length + 1)
    return start, start + length


def _length(most: int, random: Random) -> int:
    """Draw a length; short ones are as likely as long ones."""
    most = max(1, min(most, _LONGEST_RANGE_BYTES))
    return min(most, random.randint(1, 2 ** random.randint(0, most.bit_length())))
