"""The environment of processes that stay: what they need of the environment they were started from, and no secrets.

Every process of an account can read the environment that another was started with (proc_pid_environ(5)), and whatever
a shell has exported, tokens and passwords included, would stay there for as long as the process runs.
"""

import os
from collections.abc import Mapping

_NAMES = frozenset(
    {"HOME", "LD_LIBRARY_PATH", "LANG", "LANGUAGE", "NO_COLOR", "PATH", "TMPDIR", "TZ", "VIRTUAL_ENV"}
    | {"LNAME", "LOGNAME", "USER", "USERNAME"}  # where getpass.getuser looks
)
_PREFIXES = ("LC_", "PYTHON")


def clean(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that say where Python and its packages are, who the user is, and in which language."""
    return {name: value for name, value in environment.items() if name in _NAMES or name.startswith(_PREFIXES)}
