"""What the kernel refuses to watch."""

import os
import subprocess
import sys

import pytest

NOBODY_ELSE = 23461  # an account that no program runs as
TAKE_ALL = f"""
import os, resource
from workerd.engine.errors import WatchesExhausted
from workerd.engine.watcher import Watcher

most = int(open("/proc/sys/fs/inotify/max_user_instances").read())
enough = 3 * most + 100
resource.setrlimit(resource.RLIMIT_NOFILE, (enough, enough))
os.setuid({NOBODY_ELSE})
taken = []
try:
    while len(taken) <= most:
        taken.append(Watcher())
except WatchesExhausted as error:
    print(error)
"""


def test_used_up_inotify_instances_are_not_called_descriptors() -> None:
    """The kernel has one number for both (inotify_init(2), EMFILE)."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to take all instances of an account that nothing else uses")
    ended = subprocess.run([sys.executable, "-c", TAKE_ALL], capture_output=True, text=True, timeout=60, check=False)
    assert "no inotify instance left" in ended.stdout, ended.stderr
    assert "fs.inotify.max_user_instances" in ended.stdout
