"""What reaches into grpclib, h2 and hyperframe still finds there what it relies on."""

import inspect

import grpclib.client
import grpclib.protocol
import pytest
from grpclib.config import Configuration
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
