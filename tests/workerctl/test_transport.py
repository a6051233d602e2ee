"""What reaches into grpclib, h2 and hyperframe still finds there what it relies on."""

import asyncio
import inspect
from unittest.mock import Mock

import grpclib.client
import grpclib.protocol
import pytest
from grpclib.config import Configuration
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from hyperframe.frame import DataFrame, Frame

from workerctl import transport


def test_a_data_frame_is_not_written_out_for_the_trace_log() -> None:
    frame = DataFrame(1, b"x" * 100_000)
    assert len(repr(frame)) < 200
    assert "100000 bytes" in repr(frame)


def test_h2_still_formats_frames_through_this_method() -> None:
    assert "repr(frame)" in inspect.getsource(H2Connection._receive_frame)
    assert "_body_repr" in inspect.getsource(Frame.__repr__)


def test_grpclib_still_makes_connections_through_this_method() -> None:
    assert "self._protocol_factory" in inspect.getsource(grpclib.client.Channel._create_connection)
    assert "await self._create_connection()" in inspect.getsource(grpclib.client.Channel.__connect__)
    assert "await self._channel.__connect__()" in inspect.getsource(grpclib.client.Stream.send_request)
    assert "connection_lost" in vars(grpclib.protocol.H2Protocol)
    assert issubclass(transport.WorkerChannel, grpclib.client.Channel)


def test_grpclib_s_connections_still_have_what_pings_and_endings_need() -> None:
    assert "self._connection.ping(data)" in inspect.getsource(grpclib.protocol.Connection._ping)
    assert "data_to_send" in inspect.getsource(grpclib.protocol.Connection.flush)
    waits = inspect.getsource(grpclib.protocol.Stream.send_request)
    assert "connection.write_ready.wait()" in waits
    assert "connection.stream_close_waiter.wait()" in waits


def test_grpclib_s_own_pings_are_off_unless_asked_for() -> None:
    assert Configuration().__for_client__()._keepalive_time is None


def test_h2_refuses_a_request_on_a_connection_that_is_closed() -> None:
    connection = H2Connection()
    connection.initiate_connection()
    connection.close_connection()
    with pytest.raises(ProtocolError):
        connection.send_headers(1, [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "a")])


async def test_a_large_frame_may_come_together_with_the_daemons_acknowledgement() -> None:
    """The daemon sends it as soon as it knows that it may; a client that is slow reads both at once."""
    wire = Mock(asyncio.Transport, get_extra_info=Mock(return_value=None))
    client = transport._Protocol(Configuration().__for_client__(), H2Configuration(), keepalive_seconds=60.0)
    client.connection_made(wire)
    h2 = client.connection._connection
    h2.send_headers(1, [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "a")])
    client.connection.flush()
    daemon = H2Connection(H2Configuration(client_side=False))
    daemon.initiate_connection()
    daemon.receive_data(b"".join(call.args[0] for call in wire.write.call_args_list))
    daemon.send_headers(1, [(":status", "200")])
    daemon.send_data(1, bytes(60_000))
    client.data_received(daemon.data_to_send())
    assert h2.state_machine.state is h2.state_machine.state.CLIENT_OPEN
    client.connection_lost(None)
