"""Double-forks a child into a session of its own, prints the child's process id, and waits for ever.

The child holds both streams open. With the argument `leave`, the program itself ends at once; with `stubborn`, the
child ignores SIGTERM.
"""

import os
import signal
import sys

read_end, write_end = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if "stubborn" in sys.argv:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write_end, str(os.getpid()).encode())
        os.close(write_end)
        while True:
            signal.pause()
    os._exit(0)
os.wait()
os.close(write_end)
print("ready", os.read(read_end, 32).decode(), flush=True)
if "leave" not in sys.argv:
    while True:
        signal.pause()
