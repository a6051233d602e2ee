"""Finding the handlers that are installed, and refusing those that cannot be served."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from grpclib.const import Handler as Method

from workerd.access.caller import IMPERSONATE
from workerd.access.policy import On, Right
from workerd.errors import PluginInvalid
from workerd.handler import Handler

GROUP = "workerd.handlers"
_ABSENT = object()
_RIGHT = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, slots=True)
class Route:
    """A handler with what its service says about its RPC: path, cardinality, message types.

    Attributes:
        on: what its right is exercised on: a job if the request has a `job_id`, the daemon if not, either if it may.
    """

    path: str
    handler: Handler
    method: Method
    on: frozenset[On]


def load_routes(found: Iterable[EntryPoint] | None = None) -> dict[str, Route]:
    """Load every handler that is installed.

    Args:
        found: the entry points to load; None for those of the group `workerd.handlers`.

    Returns:
        The routes by path.

    Raises:
        PluginInvalid: one of them cannot be served. Nothing is served then: a daemon that lacks a part of what its
            operator installed must not look as if it were whole.
    """
    routes: dict[str, Route] = {}
    owners: dict[str, EntryPoint] = {}
    # Ours first, so that of two packages that claim one RPC it is the stranger who is named.
    for entry_point in sorted(entry_points(group=GROUP) if found is None else found, key=_ours_first):
        try:
            route = _route(entry_point.load())
            if route.path in routes:
                other = owners[route.path]
                raise ValueError(f"{route.path} is served by {other.name!r} of {_package(other)!r} already")
        except (Exception, SystemExit) as error:
            problem = " ".join(str(error).split()) or repr(error)
            raise PluginInvalid(entry_point.name, _package(entry_point), problem) from error
        routes[route.path] = route
        owners[route.path] = entry_point
    return routes


def rights_of(routes: Iterable[Route]) -> dict[str, Right]:
    """Tell which rights there are, by name: those of the handlers, and the one to act for others."""
    rights = {IMPERSONATE: Right(frozenset({On.USER}), reads=False)}
    for route in routes:
        handler = route.handler
        further = ((name, frozenset({on}), False) for name, on in handler.further.items())
        for name, on, reads in ((handler.right, route.on, handler.reads), *further):
            known = rights.get(name, Right(frozenset(), reads))
            # Where two handlers have one word for different things, it is none that only looks.
            rights[name] = Right(known.on | on, known.reads and reads)
    return rights


def _route(handler: object) -> Route:
    if not isinstance(handler, Handler):
        raise TypeError(f"{handler!r} is no handler: declare it with @handles(...)")
    for right in (handler.right, *handler.further):
        if _RIGHT.fullmatch(str(right)) is None:
            raise ValueError(f"it names no right: {right!r}")
        if right == IMPERSONATE:
            raise ValueError(f"the right {right!r} is the daemon's own")
    methods = handler.service().__mapping__()
    path, method = next(
        ((path, method) for path, method in methods.items() if path.rpartition("/")[2] == handler.rpc), (None, None)
    )
    if path is None or method is None:
        raise ValueError(f"{handler.service.__name__} has no RPC {handler.rpc!r}: it has {', '.join(methods)}")
    if method.cardinality.client_streaming:
        raise TypeError(f"{path} takes a stream of requests, which handlers do not")
    fits = inspect.isasyncgenfunction if method.cardinality.server_streaming else inspect.iscoroutinefunction
    if not fits(handler.function):
        wanted = "an async def that yields" if method.cardinality.server_streaming else "an async def without yield"
        raise TypeError(f"{path} needs {wanted}")
    try:
        inspect.signature(handler.function).bind(None, None)
    except TypeError as error:
        raise TypeError(f"it must take a call and a request: {error}") from error
    if unknown := [name for name in handler.longest if not hasattr(method.request_type(), name)]:
        raise ValueError(f"{method.request_type.__name__} has no field {unknown[0]}, whose length it limits")
    return Route(path, handler, method, _on(method.request_type))


def _on(request_type: type[Any]) -> frozenset[On]:
    """Tell from a request's fields what it is about."""
    match getattr(request_type(), "job_id", _ABSENT):
        case None:
            return frozenset({On.JOB, On.DAEMON})
        case str():
            return frozenset({On.JOB})
        case absent if absent is _ABSENT:
            return frozenset({On.DAEMON})
        case other:
            raise TypeError(f"the field job_id of {request_type.__name__} is no text: {other!r}")


def _ours_first(entry_point: EntryPoint) -> tuple[bool, str, str]:
    return _package(entry_point) != "workerd", _package(entry_point), entry_point.name


def _package(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else "?"
