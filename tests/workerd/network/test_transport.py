"""What reaches into grpclib still finds there what it relies on."""

import asyncio
import inspect
import socket

import grpclib.protocol
import grpclib.server
import pytest
from grpclib.config import Configuration
from grpclib.const import Status
from worker_api.worker.v1 import ListRequest, ListResponse

from tests.daemon import Daemon
from workerctl.errors import CallFailed
from workerd.network.http2 import OpenTransport


def test_grpclib_still_looks_routes_up_with_get() -> None:
    assert "mapping.get(method_name)" in inspect.getsource(grpclib.server.request_handler)
    assert "self._mapping = mapping" in inspect.getsource(grpclib.server.Server.__init__)


def test_grpclib_still_makes_connections_through_this_method() -> None:
    assert "self._protocol_factory" in inspect.getsource(grpclib.server.Server.start)
    made = inspect.getsource(grpclib.server.Server._protocol_factory)
    assert "return H2Protocol(handler, self._config, self._h2_config)" in made
    assert {"connection_made", "data_received", "connection_lost"} <= vars(grpclib.protocol.H2Protocol).keys()


def test_grpclib_s_connections_still_have_what_pings_need() -> None:
    assert "self._connection.ping(data)" in inspect.getsource(grpclib.protocol.Connection._ping)
    assert "data_to_send" in inspect.getsource(grpclib.protocol.Connection.flush)


def test_grpclib_s_own_pings_can_still_be_turned_off() -> None:
    assert Configuration(_keepalive_time=None).__for_server__()._keepalive_time is None
    assert "_keepalive_time is not None" in inspect.getsource(grpclib.protocol.Connection.initialize)


async def test_an_rpc_that_nobody_serves_is_said_to_be_none(shared_daemon: Daemon) -> None:
    from betterproto2.grpclib import ServiceStub

    async with shared_daemon.client() as client:
        with pytest.raises(CallFailed, match=r"has no /other\.v1\.OtherService/Act") as caught:
            await client.call(
                lambda channel: ServiceStub(channel)._unary_unary(
                    "/other.v1.OtherService/Act", ListRequest(), ListResponse
                )
            )
    assert caught.value.status is Status.UNIMPLEMENTED


async def test_data_for_a_lost_connection_is_dropped_without_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        transport.abort()
        for _ in range(20):  # asyncio logs from the fifth on
            OpenTransport(transport).write(b"x")
    assert caplog.records == []
