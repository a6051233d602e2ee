"""StreamLog: send a job's output from any position."""

import contextlib
from collections.abc import AsyncGenerator

import worker_api.worker.v1 as api
from worker_api.worker.v1 import LogAnchor, StreamLogRequest, WorkerServiceBase

from workerd.engine.engine import Start
from workerd.engine.errors import InvalidArgument
from workerd.engine.job import Stream
from workerd.handler import Call, handles
from workerd.network.codec import Encoded
from workerd.network.encoding import encode_events
from workerd.translate import from_stream


@handles(WorkerServiceBase, "StreamLog", right="stream-log", reads=True, longest={"streams": len(api.Stream)})
async def stream_log(call: Call, request: StreamLogRequest) -> AsyncGenerator[Encoded, None]:
    """Send the job's log."""
    streams = frozenset(map(from_stream, request.streams)) or frozenset(Stream)
    log = call.engine.read_log(
        call.require_job().id, _start(request), streams, follow=request.follow, room=call.room, pause=call.pause
    )
    del call  # its job may be large, and the log long
    async with contextlib.aclosing(log) as batches:
        async for events in batches:
            yield encode_events(events)


def _start(request: StreamLogRequest) -> Start:
    match request.anchor, request.offset_bytes, request.last_bytes:
        case None, int(offset), None:
            return Start(offset=offset)
        case None, None, int(last):
            return Start(last=last)
        case LogAnchor.NOW, None, None:
            return Start(last=0)
        case ((None | LogAnchor.BEGINNING | LogAnchor.UNSPECIFIED), None, None):
            return Start()
        case _:
            raise InvalidArgument("start", "is given more than once")
