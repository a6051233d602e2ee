"""A job that is encoded by hand is what betterproto2 would have made of it."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from worker_api.worker.v1 import StatusResponse

from workerd.engine.job import Job, JobSpec, JobState, JobStatus, User
from workerd.network.job_encoding import encode_status
from workerd.translate import to_job

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
JOB = Job(
    spec=JobSpec(id="id", owner=User("owner", "ann"), program="true", working_directory="/", created_ns=1),
    status=JobStatus(state=JobState.RUNNING, pid=7, started_ns=2),
    stdout_bytes=1 << 40,
    stderr_bytes=0,
)


@given(st.lists(TEXTS, max_size=20), st.dictionaries(TEXTS, TEXTS, max_size=20), st.booleans())
def test_a_status_is_read_as_its_message(args: list[str], envs: dict[str, str], with_envs: bool) -> None:
    job = msgspec.structs.replace(JOB, spec=msgspec.structs.replace(JOB.spec, args=tuple(args), envs=envs))
    message = to_job(job)
    message.envs = envs if with_envs else {}
    data = encode_status(job, with_envs=with_envs).data
    assert data[:5] == b"\0" + (len(data) - 5).to_bytes(4)
    assert StatusResponse.parse(data[5:]) == StatusResponse(job=message)
