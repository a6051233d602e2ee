"""What benchmarks have jobs run, and the peer as well: each file is a program of its own."""

from pathlib import Path

ALTERNATE = Path(__file__).with_name("alternate.py")
STAMP = Path(__file__).with_name("stamp.py")
