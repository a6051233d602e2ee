"""What a command is given besides its own parameters."""

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


def warn(sentence: str) -> None:
    """Tell the user something beside the result."""
    if sys.stderr is not None:  # it is None when it was closed, and print() would take standard output for it
        print(f"workerctl: {sentence}", file=sys.stderr)  # noqa: T201
