"""What a stranger reads of the contract: the official grpcio, with what the official compiler makes of api.proto."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import USER
from tests.peers.grpcio_peer import SECONDS, Peer


def test_whoami_tells_what_the_certificate_says(peer: Peer) -> None:
    answer = peer.call("WhoAmI", peer.pb.WhoAmIRequest())
    assert answer.user.name == USER
    assert str(uuid.UUID(answer.user.id)) == answer.user.id
    assert answer.spiffe_id == f"spiffe://workerd.internal/user/{answer.user.id}"
    assert {"list", "remove", "spawn", "status", "stop", "stream-log", "whoami"} <= set(answer.rights)
    assert list(answer.rights) == sorted(answer.rights)
    assert answer.certificate_expires_at.seconds > 0


def test_status_gives_back_what_spawn_was_asked_for(peer: Peer, tmp_path: Path) -> None:
    wish = peer.pb.SpawnRequest(
        program="sh",
        args=["-c", 'printf %s "$GREETING" "$PWD"; printf abc >&2; exit 7'],
        envs={"GREETING": "grüß dich, "},
        working_directory=str(tmp_path),
        name="ein Name",
    )
    wish.timeout.FromMilliseconds(61_250)
    job_id = peer.call("Spawn", wish).job_id
    said = b"".join(event.output.data for event in peer.events(job_id, streams=[peer.pb.STREAM_STDOUT], follow=True))
    assert said.decode() == f"grüß dich, {tmp_path}"
    job = peer.call("Status", peer.pb.StatusRequest(job_id=job_id)).job
    assert (job.id, job.owner) == (job_id, peer.call("WhoAmI", peer.pb.WhoAmIRequest()).user)
    assert (job.program, job.args, job.name, job.working_directory) == ("sh", wish.args, "ein Name", str(tmp_path))
    assert (job.timeout, job.state) == (wish.timeout, peer.pb.JOB_STATE_ENDED)
    assert (job.stdout_bytes, job.stderr_bytes) == (len(said), 3)
    assert (job.end.WhichOneof("cause"), job.end.exited.code) == ("exited", 7)
    assert job.pid > 0
    times = [time.ToNanoseconds() for time in (job.created_at, job.started_at, job.end.ended_at)]
    assert times == sorted(times)
    assert job.started_at == job.end.started_at


def test_exit_code_zero_is_told_apart_from_no_end(peer: Peer) -> None:
    job = peer.ended(peer.spawn("true"))
    assert (job.end.WhichOneof("cause"), job.end.exited.code) == ("exited", 0)


def test_death_by_a_signal_of_its_own_is_killed(peer: Peer) -> None:
    job = peer.ended(peer.spawn("sh", "-c", "kill -USR1 $$"))
    assert (job.end.WhichOneof("cause"), job.end.killed.signal) == ("killed", 10)


def test_timeout_stops_the_job(peer: Peer) -> None:
    wish = peer.pb.SpawnRequest(program="sleep", args=["1000"])
    wish.timeout.FromMilliseconds(20)
    job = peer.ended(peer.call("Spawn", wish).job_id)
    assert (job.end.WhichOneof("cause"), job.end.timed_out.signal) == ("timed_out", 15)
    assert job.end.timed_out.timeout == wish.timeout


@pytest.mark.parametrize(
    "days", [25, 3_652_500], ids=["more milliseconds than an int holds", "all that a Duration holds"]
)
def test_timeout_and_grace_may_be_very_long(peer: Peer, days: int) -> None:
    wish = peer.pb.SpawnRequest(program="sh", args=["-c", "trap 'exit 4' TERM; echo ready; sleep 1000 & wait"])
    wish.timeout.FromSeconds(days * 86_400)
    job_id = peer.call("Spawn", wish).job_id
    follower = peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS)
    assert next(follower).output.data == b"ready\n"
    peer.call("Stop", peer.pb.StopRequest(job_id=job_id, grace=wish.timeout))
    (event,) = follower
    assert (event.end.WhichOneof("cause"), event.end.stopped.exit_code) == ("stopped", 4)
    assert peer.ended(job_id).timeout == wish.timeout


def test_stop_with_zero_grace_kills_and_names_who_asked(peer: Peer) -> None:
    job_id = peer.spawn("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done")
    request = peer.pb.StopRequest(job_id=job_id)
    request.grace.SetInParent()
    job = peer.call("Stop", request).job
    assert job.id == job_id
    assert job.state in {peer.pb.JOB_STATE_STOPPING, peer.pb.JOB_STATE_ENDED}
    end = peer.ended(job_id).end
    assert (end.WhichOneof("cause"), end.stopped.signal, end.stopped.by) == ("stopped", 9, job.owner)
    assert (end.stopped.WhichOneof("outcome"), end.stopped.killed_by_signal) == ("killed_by_signal", 9)


def test_stop_without_grace_lets_the_program_end_itself(peer: Peer) -> None:
    job_id = peer.spawn("sh", "-c", "trap 'exit 4' TERM; echo ready; sleep 1000 & wait")
    first = next(peer.stub.StreamLog(peer.pb.StreamLogRequest(job_id=job_id, follow=True), timeout=SECONDS))
    assert first.output.data == b"ready\n"
    peer.call("Stop", peer.pb.StopRequest(job_id=job_id))
    stopped = peer.ended(job_id).end.stopped
    assert (stopped.signal, stopped.WhichOneof("outcome"), stopped.exit_code) == (15, "exit_code", 4)


def test_stopping_an_ended_job_is_no_error(peer: Peer) -> None:
    job = peer.ended(peer.spawn("true"))
    assert peer.call("Stop", peer.pb.StopRequest(job_id=job.id)).job == job


def test_list_pages_through_all_jobs_of_a_name_newest_first(peer: Peer) -> None:
    name = str(uuid.uuid4())
    spawned = [peer.spawn("true", name=name) for _ in range(5)]
    for job_id in spawned:
        peer.ended(job_id)
    pages: list[list[Any]] = []
    token = ""
    while not pages or token:
        page = peer.call("List", peer.pb.ListRequest(name=name, page_size=2, page_token=token))
        pages.append(list(page.jobs))
        token = page.next_page_token
    jobs = [job for page in pages for job in page]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [job.id for job in jobs] == spawned[::-1]
    assert jobs == [peer.call("Status", peer.pb.StatusRequest(job_id=job.id)).job for job in jobs]


def test_list_tells_states_apart(peer: Peer) -> None:
    name = str(uuid.uuid4())
    running, ended = peer.spawn("sleep", "1000", name=name), peer.spawn("true", name=name)
    peer.ended(ended)
    found = {
        state: [job.id for job in peer.call("List", peer.pb.ListRequest(name=name, states=[state])).jobs]
        for state in (peer.pb.JOB_STATE_RUNNING, peer.pb.JOB_STATE_ENDED)
    }
    assert found == {peer.pb.JOB_STATE_RUNNING: [running], peer.pb.JOB_STATE_ENDED: [ended]}


def test_repeated_request_key_gives_the_same_job(peer: Peer, tmp_path: Path) -> None:
    key, trace = str(uuid.uuid4()), tmp_path / "trace"
    command = ("sh", "-c", f"echo once >>{trace}")
    calls = [
        peer.stub.Spawn.future(
            peer.pb.SpawnRequest(program=command[0], args=command[1:], request_key=key), timeout=SECONDS
        )
        for _ in range(8)
    ]
    (job_id,) = {call.result().job_id for call in calls}
    peer.ended(job_id)
    assert peer.spawn(*command, request_key=key) == job_id
    assert trace.read_text() == "once\n"
    others = [peer.spawn(*command, request_key=key + "'"), peer.spawn(*command), peer.spawn(*command)]
    assert len({job_id, *others}) == 4


def test_fields_of_a_later_contract_are_passed_over(peer: Peer) -> None:
    job_id = peer.spawn("true")
    request = peer.pb.StatusRequest(job_id=job_id).SerializeToString() + b"\xfa\x3f\x05later"  # field 1023
    (answer,) = peer.call_raw("Status", request)
    assert peer.pb.StatusResponse.FromString(answer).job.id == job_id
