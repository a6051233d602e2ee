"""What a command is given besides its own parameters."""

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass, field

from workerctl.client import Client
from workerctl.retry import Patience
from workerctl.target import Target


@dataclass(frozen=True, slots=True)
class Context:
    """What stood before the subcommand. A command asks for it with a parameter `context: Injected`."""

    target: Target
    patience: Patience = field(default_factory=Patience)

    def client(self) -> Client:
        """Make a client of the daemon that is meant; what it retries is told on standard error."""
        return Client(self.target, on_retry=warn, patience=self.patience)

    def command(self, *words: str) -> str:
        """Write another command for the same daemon and user, as a shell takes it."""
        return shlex.join(["workerctl", *self.target.options(), *words])


def warn(sentence: str) -> None:
    """Tell the user something beside the result. Where that cannot be written, it is lost and nothing else is."""
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    with contextlib.suppress(OSError):
        os.write(2, f"workerctl: {sentence}\n".encode(encoding, "backslashreplace"))
