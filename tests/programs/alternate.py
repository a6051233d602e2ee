"""Print lines of 40 bytes to both streams in turn: so many, each once the one before has been taken out of its pipe."""

import array
import fcntl
import os
import sys
import termios

waiting = array.array("i", [0])
for number in range(int(sys.argv[1])):
    stream = 1 + number % 2
    os.write(stream, b"%039d\n" % number)
    waiting[0] = 1
    while waiting[0]:
        fcntl.ioctl(stream, termios.FIONREAD, waiting)
        os.sched_yield()
