"""Print what a script says and end as it says: `printer.py SCRIPT`, a JSON object.

steps   pairs of a descriptor and base64 text, each one write; descriptor 0 waits until the FIFO of that path opens
paced   whether to wait after each write until it has been taken out of its pipe
ending  a pair: "exit" and a code, "kill" and a signal, or "wait" and anything, to wait for a signal
"""

import array
import base64
import fcntl
import json
import os
import signal
import sys
import termios

with open(sys.argv[1], encoding="utf-8") as file:
    script = json.load(file)
waiting = array.array("i", [0])
for descriptor, text in script["steps"]:
    data = base64.b64decode(text)
    if descriptor == 0:
        os.close(os.open(data, os.O_RDONLY))
        continue
    while data:
        data = data[os.write(descriptor, data) :]
    waiting[0] = 1
    while script["paced"] and waiting[0]:
        fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
        os.sched_yield()
kind, value = script["ending"]
if kind == "kill":
    os.kill(os.getpid(), value)
while kind == "wait":
    signal.pause()
sys.exit(value)
