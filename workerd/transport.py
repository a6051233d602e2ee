"""The daemon's side of gRPC. What reaches into grpclib's inside stands here and nowhere else.

- A call of an RPC that nobody serves is answered in full: grpclib's own answer lacks the content type, which its own
  client then takes for the failure (`grpclib.server._abort`).
"""

from typing import Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream


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
