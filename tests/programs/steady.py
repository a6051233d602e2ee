"""Writes known bytes to both streams, steadily, until a FIFO is written to; then a last line, and exits with a code.

steady.py FIFO SEED CODE
"""

import itertools
import os
import random
import select
import sys

_PAUSE_MS = 5
_LONGEST = 3000


def piece(seed: str, stream: int, number: int) -> bytes:
    """Make what one write(2) to a stream gives."""
    source = random.Random(f"{seed} {stream:d} {number}")
    return source.randbytes(source.randint(1, _LONGEST))


def last_line(count: int) -> bytes:
    """Make the last line of either stream, which says how many pieces were before it."""
    return b"\nend %d\n" % count


def whole(seed: str, stream: int, count: int) -> bytes:
    """Make all that a stream gives."""
    return b"".join(piece(seed, stream, number) for number in range(count)) + last_line(count)


def beginning(seed: str, stream: int, size_bytes: int) -> bytes:
    """Make so many bytes of what a stream gives, when it goes on for long enough."""
    made = bytearray()
    for number in itertools.count():
        if len(made) >= size_bytes:
            break
        made += piece(seed, stream, number)
    return bytes(made[:size_bytes])


def write(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(descriptor, data) :]


def main(fifo: str, seed: str, code: str) -> int:
    """Run the program."""
    gate = select.poll()
    gate.register(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), select.POLLIN)
    count = 0
    while not gate.poll(_PAUSE_MS):  # the end of a writer that came is an event, too; before one came there is none
        for stream in (1, 2):
            write(stream, piece(seed, stream, count))
        count += 1
    for stream in (1, 2):
        write(stream, last_line(count))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
