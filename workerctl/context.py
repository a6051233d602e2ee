"""What a command is given besides its own parameters."""

import shlex
from dataclasses import dataclass, field

from workerctl.client import Client
from workerctl.retry import Patience
from workerctl.target import Target
from workerctl.terminal import warn


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
