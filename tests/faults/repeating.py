"""What the harness tries again because the client does not: it gives up soon on a daemon that it has never heard."""

import asyncio
from collections.abc import Callable

from worker_api.worker.v1 import SpawnRequest

from workerctl.client import Client
from workerctl.errors import ClientError, GaveUp, Refused, Unavailable, Unreachable
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


def had_no_first_contact(error: ClientError) -> bool:
    """Tell whether a reader never got to a daemon: a client has little patience with one that it never heard."""
    return isinstance(error, GaveUp | Refused)


def command_had_no_first_contact(code: int, said: str) -> bool:
    """The same of a `workerctl stream-log` that printed nothing."""
    return code == ExitCode.FAILED and ("gave up after" in said or "it refused the certificate" in said)


def run_gave_up_before_its_job_was_known(code: int | None, said: str) -> bool:
    """Tell whether a `workerctl run` that printed nothing lost the answer to its spawn: the job may be there or not."""
    return code == ExitCode.FAILED and "go on with:" not in said
