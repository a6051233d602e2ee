"""Becomes another program, in a state that a careless starter might leave it.

Usage: unusual.py [--block SIGNAL] [--ignore SIGNAL] [--key NAME] [--limit NAME=SOFT[:HARD]] [--nice N]
[--oom-score-adj N] [--real-time] [--umask OCTAL] -- PROGRAM [ARGUMENT ...]
"""

import argparse
import ctypes
import os
import resource
import signal

parser = argparse.ArgumentParser()
parser.add_argument("--block", action="append", default=[])
parser.add_argument("--ignore", action="append", default=[])
parser.add_argument("--key")
parser.add_argument("--limit", action="append", default=[])
parser.add_argument("--nice", type=int)
parser.add_argument("--oom-score-adj", type=int)
parser.add_argument("--real-time", action="store_true")
parser.add_argument("--umask")
parser.add_argument("command", nargs="+")
wanted = parser.parse_args()
for name in wanted.ignore:
    signal.signal(signal.Signals[name], signal.SIG_IGN)
for each in wanted.limit:
    name, _, values = each.partition("=")
    number = getattr(resource, f"RLIMIT_{name}")
    soft, _, hard = values.partition(":")
    resource.setrlimit(number, (int(soft), int(hard) if hard else resource.getrlimit(number)[1]))
if wanted.nice is not None:
    os.setpriority(os.PRIO_PROCESS, 0, wanted.nice)
if wanted.real_time:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
if wanted.oom_score_adj is not None:
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(wanted.oom_score_adj))
if wanted.umask is not None:
    os.umask(int(wanted.umask, 8))
if wanted.key is not None:  # in a new session keyring, as a login makes one (session-keyring(7))
    add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
    join, session = ctypes.c_long(1), ctypes.c_long(-3)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(keyctl), join, None) < 0:
        raise SystemExit(f"no session keyring: {os.strerror(ctypes.get_errno())}")
    if libc.syscall(ctypes.c_long(add_key), b"user", wanted.key.encode(), b"secret", ctypes.c_size_t(6), session) < 0:
        raise SystemExit(f"no key: {os.strerror(ctypes.get_errno())}")
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.Signals[name] for name in wanted.block])
os.execvp(wanted.command[0], wanted.command)
