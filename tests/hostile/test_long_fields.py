"""What is longer than a field can mean is refused before it is decided on, written down or repeated."""

from collections.abc import Callable
from typing import Any

import pytest
from grpclib.const import Status
from worker_api.worker.v1 import (
    ExplainDecisionRequest,
    IssueCredentialRequest,
    JobState,
    ListRequest,
    ShareRequest,
    SpawnRequest,
    SpawnResponse,
    StatusRequest,
    Stream,
    StreamLogRequest,
)

from tests.daemon import Daemon
from tests.holding import forget_peak, peak_bytes
from tests.hostile.attacker import Answer, Connection, message, request_headers

LONG = "\0" * (8_388_608 - 200)
MOST_BYTES = 64 << 20  # eight times a request
MANY = ["stop"] * ((1 << 18) - 20)
REQUESTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "ExplainDecision right": (lambda job: ExplainDecisionRequest(job_id=job, right=LONG), "right is longer"),
    "ExplainDecision user": (lambda _: ExplainDecisionRequest(right="stop", user=LONG), "user is longer"),
    "ExplainDecision target": (lambda _: ExplainDecisionRequest(right="run-as", target=LONG), "target is longer"),
    "Share rights": (lambda job: ShareRequest(job_id=job, user="ann", rights=MANY), "rights is longer"),
    "Share user": (lambda job: ShareRequest(job_id=job, user=LONG), "user is longer"),
    "IssueCredential rights": (lambda _: IssueCredentialRequest(rights=MANY), "rights is longer"),
    "List name": (lambda _: ListRequest(name=LONG), "name is longer"),
    "List page_token": (lambda _: ListRequest(page_token=LONG), "page_token is longer"),
    "List states": (lambda _: ListRequest(states=[JobState.RUNNING] * len(MANY)), "states is longer"),
    "StreamLog streams": (lambda job: StreamLogRequest(job_id=job, streams=[Stream.STDOUT] * len(MANY)), "streams is"),
    "Status job_id": (lambda _: StatusRequest(job_id=LONG), "is not a job id"),
    "Spawn program": (lambda _: SpawnRequest(program=LONG), "program is longer"),
    "Spawn envs": (lambda _: SpawnRequest(program="true", envs={LONG + "=": ""}), "cannot be the name"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_long_field_is_refused_and_repeated_nowhere(
    name: str, shared_daemon: Daemon, note: Callable[[str], None]
) -> None:
    make, problem = REQUESTS[name]
    target = shared_daemon.target()
    context = target.tls()

    def ask(rpc: str, request: Any) -> Answer:
        with Connection(target, context) as connection:
            return connection.open().call(request_headers(rpc), message(bytes(request)))

    job_id = SpawnResponse.parse(ask("Spawn", SpawnRequest(program="true")).data[5:]).job_id
    data = make(job_id)
    trail = shared_daemon.state / "audit"
    before = sum(path.stat().st_size for path in trail.iterdir())
    forget_peak(shared_daemon.pid)
    held = peak_bytes(shared_daemon.pid)
    answer = ask(name.split()[0], data)
    peak = peak_bytes(shared_daemon.pid)
    note(f"{(peak - held) / 2**20:.0f} MiB more at most")
    assert answer.status == Status.INVALID_ARGUMENT.value
    assert problem in dict(answer.headers)["grpc-message"] and len(dict(answer.headers)["grpc-message"]) < 2000
    assert sum(path.stat().st_size for path in trail.iterdir()) - before < 4096
    assert peak - held < MOST_BYTES
