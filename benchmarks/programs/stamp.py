"""Prints lines that say when they were written, by the clock that all processes of a machine share.

    stamp.py GATE COUNT SECONDS SIZE

It prints the line `ready`, waits until somebody opens and closes the FIFO GATE, and then prints COUNT lines of SIZE
bytes, one every SECONDS, each with one write(2).
"""

import os
import sys
import time
from pathlib import Path

READY = b"ready\n"


def line(number: int, size_bytes: int) -> bytes:
    """Make a line that tells its number and the time, in nanoseconds of CLOCK_MONOTONIC."""
    return (b"%d %d " % (number, time.monotonic_ns())).ljust(size_bytes - 1, b".") + b"\n"


def read(text: bytes) -> tuple[int, float]:
    """Take a line apart that has just arrived: its number, and for how many seconds it was on its way."""
    number, written_ns, _ = text.split(b" ", 2)
    return int(number), (time.monotonic_ns() - int(written_ns)) / 1e9


def main(gate: Path, count: int, seconds: float, size_bytes: int) -> None:
    """Run the program."""
    os.write(1, READY)
    gate.read_bytes()
    start = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, start + number * seconds - time.monotonic()))
        left = memoryview(line(number, size_bytes))
        while left:
            left = left[os.write(1, left) :]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
