"""A program for jobs that prints numbered lines in bursts of various sizes, at a pace, and what it prints.

    printer.py SEED LINES PAUSE_SECONDS STREAMS COUNT

LINES is how many there are in a burst on average, STREAMS how many streams they go to, COUNT how many bursts there are;
0 is no end of them.
"""

import itertools
import os
import random
import sys
import time
from collections.abc import Iterator


def bursts(seed: int, lines: int, streams: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Return what is printed: the stream, and the bytes that go there with one write(2)."""
    source = random.Random(seed)
    number = seed
    for _ in range(count) if count else itertools.count():
        size = source.randint(1, 2 * lines - 1)
        yield source.randint(1, streams), b"".join(b"%d\n" % each for each in range(number, number + size))
        number += size


def main(seed: str, lines: str, pause_seconds: str, streams: str, count: str) -> None:
    """Run the program."""
    for stream, data in bursts(int(seed), int(lines), int(streams), int(count)):
        left = memoryview(data)
        while left:
            left = left[os.write(stream, left) :]
        time.sleep(float(pause_seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
