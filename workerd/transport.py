"""The daemon's side of gRPC. What reaches into grpclib's inside stands here and nowhere else.

- A call of an RPC that nobody serves is answered in full: grpclib's own answer lacks the content type, which its own
  client then takes for the failure (`grpclib.server._abort`).
- A request that says it is too long is not read: grpclib takes a message of any length into memory. What is not read
  is not acknowledged, so HTTP/2's flow control bounds what comes of it.
"""

from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

# Above all arguments and variables that the kernel takes together, three quarters of 8 MiB (execve(2)).
MAX_REQUEST_BYTES = 1 << 23


def bound_request(stream: Stream[Any, Any]) -> None:
    """Have `recv_message` of a stream raise ValueError for a message of more than MAX_REQUEST_BYTES."""
    receive = stream._stream.recv_data

    async def receive_bounded(size: int) -> bytes:
        if size > MAX_REQUEST_BYTES:
            raise ValueError(f"its {size} bytes are more than {MAX_REQUEST_BYTES}")
        return await receive(size)

    stream._stream.recv_data = receive_bounded  # type: ignore[method-assign]


class _Routes(dict[str, Handler]):
    """The routes by path; a path that is not there leads to an answer that says so."""

    def get(self, path: str, default: Any = None) -> Any:
        del default
        return self[path] if path in self else Handler(_unserved(path), Cardinality.UNARY_UNARY, bytes, bytes)


def _unserved(path: str) -> Any:
    async def refuse(stream: Stream[Any, Any]) -> None:
        del stream
        raise GRPCError(Status.UNIMPLEMENTED, f"this daemon has no {path}: update it, or install the plugin there")

    return refuse


class WorkerServer(Server):
    """A server whose every answer is a whole one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._mapping = _Routes(self._mapping)
