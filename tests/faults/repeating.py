"""What the harness tries again because the client does not yet: to be deleted with its callers once it does."""

import asyncio
from collections.abc import Callable

from worker_api.worker.v1 import SpawnRequest

from workerctl.client import Client
from workerctl.errors import ClientError, Refused, Unavailable, Unreachable
from workerctl.exit_codes import ExitCode

_PAUSE_SECONDS = 0.2


async def spawn_until_answered(make_client: Callable[[], Client], request: SpawnRequest, limit_seconds: float) -> str:
    """Make a spawn again, with the same key, for as long as its answer is lost on the way.

    Raises:
        TimeoutError: no answer came.
    """
    last: Exception | None = None
    try:
        async with asyncio.timeout(limit_seconds):
            while True:
                try:
                    async with make_client() as client:
                        return await client.spawn(request)
                except (Unreachable, Unavailable, Refused) as error:
                    last = error
                    await asyncio.sleep(_PAUSE_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"{request.name}: no answer to a spawn for {limit_seconds} s; last: {last}") from last


def was_cut_in_its_first_handshake(error: ClientError) -> bool:
    """Tell whether a reader never got as far as a daemon: it takes a cut for a refusal of its certificate."""
    return isinstance(error, Refused)


def command_was_cut_in_its_first_handshake(code: int, said: str) -> bool:
    """The same of a `workerctl stream-log` that printed nothing."""
    return code == ExitCode.FAILED and "it refused the certificate" in said


def run_gave_up_before_its_job_was_known(code: int | None, said: str) -> bool:
    """Tell whether a `workerctl run` that printed nothing lost the answer to its spawn: the job may be there or not."""
    return code == ExitCode.FAILED and "go on with:" not in said
