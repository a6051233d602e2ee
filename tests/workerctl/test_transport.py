"""What reaches into grpclib, h2 and hyperframe still finds there what it relies on."""

import inspect

import grpclib.client
import grpclib.protocol
from h2.connection import H2Connection
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
    assert "connection_lost" in vars(grpclib.protocol.H2Protocol)
    assert issubclass(transport.WorkerChannel, grpclib.client.Channel)
