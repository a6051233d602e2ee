"""What Ctrl-C does to the job that `run` shows."""

import asyncio
import errno
import os
import signal
from datetime import timedelta

import pytest
from worker_api.worker.v1 import Job

from pki.errors import PkiError
from workerctl.client import Client
from workerctl.commands.run import Interrupts
from workerctl.context import Context
from workerctl.errors import ClientError
from workerctl.target import Target


class Failing(Client):
    """A client that can stop nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__(Target())
        self.error = error

    async def stop(self, job_id: str, grace: timedelta | None = None) -> Job:  # noqa: ARG002
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ClientError("the daemon is away"), "the daemon is away"),
        (PkiError("there is no certificate"), "there is no certificate"),
        (PermissionError(errno.EACCES, "Permission denied", "client.key"), "client.key: Permission denied"),
    ],
    ids=["client", "pki", "system"],
)
async def test_a_stop_that_cannot_be_sent_is_one_line(
    error: Exception, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Interrupts(Failing(error), Context(Target())) as interrupts:
        interrupts.started("the-job")
        os.kill(os.getpid(), signal.SIGINT)
        while not interrupts.count:
            await asyncio.sleep(0)
    assert capfd.readouterr().err.splitlines()[1:] == [f"workerctl: could not stop the job: {said}"]
