"""What reaches into grpclib still finds there what it relies on."""

import inspect

import grpclib.server
import pytest
from grpclib.const import Status
from worker_api.worker.v1 import ListRequest, ListResponse

from tests.daemon import Daemon
from workerctl.errors import CallFailed


def test_grpclib_still_looks_routes_up_with_get() -> None:
    assert "mapping.get(method_name)" in inspect.getsource(grpclib.server.request_handler)
    assert "self._mapping = mapping" in inspect.getsource(grpclib.server.Server.__init__)


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
