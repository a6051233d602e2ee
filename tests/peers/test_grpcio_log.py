"""A log as grpcio reads it: whole, from any offset, and as it is printed."""

import os
from pathlib import Path
from typing import Any

import grpc
import pytest
import xxhash

from tests.peers.grpcio_peer import SECONDS, STDERR_BYTES, STDOUT_BYTES, Peer, Printed


def test_log_is_every_byte_in_order_and_its_end_sums_it_up(peer: Peer, printed: Printed) -> None:
    *outputs, last = peer.events(printed.job_id, follow=True)
    assert {event.WhichOneof("event") for event in outputs} == {"output"}
    assert last.WhichOneof("event") == "end"
    offset, streams = 0, {peer.pb.STREAM_STDOUT: b"", peer.pb.STREAM_STDERR: b""}
    for output in (event.output for event in outputs):
        assert output.offset_bytes == offset
        assert output.stream_offset_bytes == len(streams[output.stream])
        streams[output.stream] += output.data
        offset += len(output.data)
    assert streams == {peer.pb.STREAM_STDOUT: printed.stdout, peer.pb.STREAM_STDERR: printed.stderr}
    assert (len(printed.stdout), len(printed.stderr)) == (STDOUT_BYTES, STDERR_BYTES)
    summaries = {summary.stream: (summary.size_bytes, summary.xxh3_128) for summary in last.end.streams}
    assert summaries == {stream: (len(data), xxhash.xxh3_128_digest(data)) for stream, data in streams.items()}
    times = [event.output.time_unix_nano for event in outputs]
    assert times == sorted(times)
    assert times[0] >= last.end.started_at.ToNanoseconds()
    assert times[-1] <= last.end.ended_at.ToNanoseconds() + 1000  # a Timestamp of ours counts whole microseconds


@pytest.mark.parametrize("offset", [0, 1, 65_537, 2_345_678, STDOUT_BYTES + STDERR_BYTES - 1])
def test_log_resumes_at_any_offset(peer: Peer, printed: Printed, offset: int) -> None:
    *outputs, last = peer.events(printed.job_id, offset_bytes=offset, follow=True)
    assert outputs[0].output.offset_bytes == offset
    assert b"".join(event.output.data for event in outputs) == printed.combined[offset:]
    assert last.HasField("end")


def test_log_resumed_at_its_end_is_only_the_end(peer: Peer, printed: Printed) -> None:
    (event,) = peer.events(printed.job_id, offset_bytes=len(printed.combined), follow=True)
    assert event.HasField("end")


@pytest.mark.parametrize("count", [1, 70_000, STDOUT_BYTES + STDERR_BYTES, 2**64 - 1])
def test_last_bytes_are_those_before_the_end(peer: Peer, printed: Printed, count: int) -> None:
    *outputs, last = peer.events(printed.job_id, last_bytes=count)
    assert b"".join(event.output.data for event in outputs) == printed.combined[-count:]
    assert last.HasField("end")


@pytest.mark.parametrize("stream", ["STREAM_STDOUT", "STREAM_STDERR"])
def test_one_stream_alone_is_complete(peer: Peer, printed: Printed, stream: str) -> None:
    number = peer.pb.Stream.Value(stream)
    *outputs, last = peer.events(printed.job_id, streams=[number])
    assert {event.output.stream for event in outputs} == {number}
    wanted = printed.stdout if stream == "STREAM_STDOUT" else printed.stderr
    assert b"".join(event.output.data for event in outputs) == wanted
    for output in (event.output for event in outputs):
        assert printed.combined[output.offset_bytes :].startswith(output.data)
    assert len(last.end.streams) == 2


def test_without_follow_the_log_of_a_running_job_ends_where_it_ends_now(peer: Peer) -> None:
    job_id = peer.spawn("sh", "-c", "echo ready; exec sleep 1000")
    follower = peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS)
    assert next(follower).output.data == b"ready\n"
    (event,) = peer.events(job_id)
    assert event.output.data == b"ready\n"
    assert peer.events(job_id, anchor=peer.pb.LOG_ANCHOR_NOW) == []
    assert peer.events(job_id, last_bytes=0) == []
    assert [event.output.data for event in peer.events(job_id, last_bytes=3)] == [b"dy\n"]
    peer.call("Stop", peer.pb.StopRequest(job_id=job_id))
    (event,) = follower
    assert event.end.WhichOneof("cause") == "stopped"


def test_follower_gets_what_is_printed_later(peer: Peer, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job_id = peer.spawn("sh", "-c", f"echo before; read line <{gate}; echo after >&2")
    follower = peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS)
    first = next(follower)
    gate.write_text("go\n")
    second, last = follower
    assert [(event.output.stream, event.output.data) for event in (first, second)] == [
        (peer.pb.STREAM_STDOUT, b"before\n"),
        (peer.pb.STREAM_STDERR, b"after\n"),
    ]
    assert (second.output.offset_bytes, second.output.stream_offset_bytes) == (7, 0)
    assert last.HasField("end")


def test_deadline_of_a_follower_is_kept(peer: Peer) -> None:
    request = peer.pb.StreamLogRequest(job_id=peer.spawn("sleep", "1000"), follow=True)
    with pytest.raises(grpc.RpcError) as raised:
        list(peer.stub.StreamLog(request, timeout=0.1))
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
