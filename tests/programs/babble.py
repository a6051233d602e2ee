"""Writes pseudo-random bytes to both streams in bursts and exits with a code, all as its arguments say.

    babble.py DIARY SEED BYTES SECONDS CODE

It first appends a line with its job's id to the file DIARY, so that a second run of it would be seen. Then it forks a
child into a session of its own, which holds both streams open and waits for ever.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator

_BURSTS_PER_SECOND = 4


def writes(seed: int, size_bytes: int, seconds: float) -> Iterator[tuple[int, bytes, float]]:
    """Tell what the program writes.

    Args:
        seed: decides about everything.
        size_bytes: of both streams together.
        seconds: about how long the pauses are together.

    Yields:
        A descriptor, the bytes that go there with one write(2), and the pause after it in seconds.
    """
    source = random.Random(seed)
    bursts = max(1, round(seconds * _BURSTS_PER_SECOND))
    for burst in range(bursts):
        left = size_bytes * (burst + 1) // bursts - size_bytes * burst // bursts
        while left:
            limit = source.choice((80, 8_000, 300_000))
            data = source.randbytes(min(left, source.randint(1, limit)))
            left -= len(data)
            pause = 0.0 if left or burst == bursts - 1 else source.uniform(0.5, 1.5) * seconds / bursts
            yield source.choice((1, 2)), data, pause


def main(diary: str, seed: str, size_bytes: str, seconds: str, code: str) -> int:
    """Run the program."""
    descriptor = os.open(diary, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{os.environ['WORKERD_JOB_ID']}\n".encode())
    os.close(descriptor)
    if os.fork() == 0:
        os.setsid()
        while True:
            signal.pause()
    for stream, data, pause in writes(int(seed), int(size_bytes), float(seconds)):
        left = memoryview(data)
        while left:
            left = left[os.write(stream, left) :]
        time.sleep(pause)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
