"""Prints numbered lines, even ones to standard output and odd ones to standard error, each with one write(2).

alternate.py COUNT
"""

import os
import sys

LINE_BYTES = 40


def line(number: int) -> bytes:
    """Make a line."""
    return b"%039d\n" % number


def main(count: int) -> None:
    """Run the program."""
    for number in range(count):
        os.write(1 + number % 2, line(number))


if __name__ == "__main__":
    main(int(sys.argv[1]))
