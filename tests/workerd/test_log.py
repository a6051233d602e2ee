"""What the daemon's log does to the terminal, or the reader, that it ends up in."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, structlog
from workerd.log import configure_log
configure_log()
structlog.get_logger().warning("event " + sys.argv[1], user=sys.argv[1])
"""


@pytest.mark.parametrize("name", ["evil\x1b[2J", "evil\nforged", "evil\x9b2J\u202e", "evil \x07"])
def test_a_user_s_name_does_nothing_to_the_terminal(name: str) -> None:
    command = [sys.executable, "-c", SCRIPT, name]
    printed = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, check=True).stderr.decode()
    assert printed.count("\n") == 1
    assert printed.rstrip("\n").isprintable()
    assert printed.count("evil") == 2
