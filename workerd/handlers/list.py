"""List: describe the caller's jobs."""

from typing import Any

from worker_api.worker.v1 import JobState, ListRequest, WorkerServiceBase

from workerd.access.caller import SEE
from workerd.engine.catalog import Reach
from workerd.engine.errors import InvalidArgument, JobIdMalformed
from workerd.engine.job import parse_job_id
from workerd.engine.request import MAX_LABEL_BYTES
from workerd.handler import Call, handles, to_resource
from workerd.network.codec import Encoded
from workerd.network.job_encoding import encode_list, encode_row
from workerd.translate import from_state

_DEFAULT_SIZE = 50
_MAX_SIZE = 1000
_MAX_TIME_NS = 2**63 - 1
_LONGEST = {"name": MAX_LABEL_BYTES, "states": len(JobState), "page_token": 100}


def _describe(request: ListRequest) -> dict[str, Any]:
    return {"all_owners": request.all_owners}


@handles(WorkerServiceBase, "List", right="list", reads=True, audit=_describe, longest=_LONGEST)
async def list_jobs(call: Call, request: ListRequest) -> Encoded:
    """Describe one page of the caller's jobs, or of all that the caller may see, newest first."""
    if not 0 <= request.page_size <= _MAX_SIZE:
        raise InvalidArgument("page_size", f"must be 1 to {_MAX_SIZE}, or 0 for {_DEFAULT_SIZE}")
    page = await call.engine.list_jobs(
        _reach(call) if request.all_owners else call.identity.user_id,
        states=[from_state(state) for state in request.states],
        name=request.name,
        size=request.page_size or _DEFAULT_SIZE,
        after=_parse_token(request.page_token) if request.page_token else None,
        is_visible=lambda found: (
            call.caller.may(SEE, to_resource(found.job_id, found, call.daemon.users, call.caller.user)).permitted
        ),
        pause=call.pause,
    )
    token = "" if page.next is None else f"{page.next[0]}.{page.next[1]}"
    rows = []
    for row in page.rows:
        await call.pause()
        rows.append(encode_row(row))
    return encode_list(rows, token)


def _reach(call: Call) -> Reach | None:
    """Return where to look for the jobs that the caller may see; None for everywhere.

    A list within a reach takes no time for jobs that the caller may not see.
    """
    caller = call.caller
    if caller.may_reach_any(SEE):
        return None
    user = caller.user
    return Reach(user.id, frozenset({user.id, user.name}), caller.rights.policies.jobs)


def _parse_token(token: str) -> tuple[int, str]:
    created, _, job_id = token.partition(".")
    try:
        if created.isascii() and created.isdecimal() and int(created) <= _MAX_TIME_NS:
            return int(created), parse_job_id(job_id)
    except JobIdMalformed:
        pass
    raise InvalidArgument("page_token", "is none that List gave")
