"""Prints, as JSON, what a program can see of how it was started."""

import json
import os
import resource
import sys

status = dict(
    line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status", encoding="utf-8") if ":\t" in line
)
print(
    json.dumps(
        {
            "arguments": sys.argv[1:],
            "environment": dict(os.environ),
            "descriptors": {
                name: os.readlink(f"/proc/self/fd/{name}")
                for name in os.listdir("/proc/self/fd")
                if os.path.lexists(f"/proc/self/fd/{name}")
            },
            "directory": os.getcwd(),
            "session_leader": os.getsid(0) == os.getpid(),
            "blocked": status["SigBlk"],
            "ignored": status["SigIgn"],
            "umask": status["Umask"],
            "capabilities": {name: status[name] for name in ("CapInh", "CapAmb")},
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "scheduler": os.sched_getscheduler(0),
            "oom_score_adj": int(open("/proc/self/oom_score_adj", encoding="ascii").read()),
            "limits": {
                name: resource.getrlimit(getattr(resource, name))
                for name in dir(resource)
                if name.startswith("RLIMIT_")
            },
        }
    )
)
