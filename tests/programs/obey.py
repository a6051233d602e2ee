"""Do what is said on a FIFO: `1 SIZE` and `2 SIZE` print so many bytes to that descriptor, `x CODE` exits.

The byte at an offset of a stream is known: see `pattern`.
"""

import os
import sys

PERIOD = bytes(number * 7 % 251 for number in range(251))


def pattern(descriptor: int, offset: int, size: int) -> bytes:
    """What a stream has at an offset."""
    start = (offset + descriptor * 100) % len(PERIOD)
    return (PERIOD * (size // len(PERIOD) + 2))[start : start + size]


def main() -> None:
    sizes = {1: 0, 2: 0}
    with open(sys.argv[1]) as orders:
        for line in orders:
            order, number = line.split()
            if order == "x":
                sys.exit(int(number))
            descriptor, size = int(order), int(number)
            data = memoryview(pattern(descriptor, sizes[descriptor], size))
            while data:
                data = data[os.write(descriptor, data) :]
            sizes[descriptor] += size


if __name__ == "__main__":
    main()
