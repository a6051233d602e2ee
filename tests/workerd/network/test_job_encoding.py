"""A job that is encoded by hand is what betterproto2 would have made of it."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from worker_api.worker.v1 import ListResponse, StatusResponse

from workerd.engine.job import DamagedJob, Job, JobSpec, JobState, JobStatus, User
from workerd.network.job_encoding import encode_list, encode_row, encode_status
from workerd.translate import to_job, to_row

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
PAUSES: list[None] = []


async def _pause() -> None:
    PAUSES.append(None)


JOB = Job(
    spec=JobSpec(id="id", owner=User("owner", "ann"), program="true", working_directory="/", created_ns=1),
    status=JobStatus(state=JobState.RUNNING, pid=7, started_ns=2),
    stdout_bytes=1 << 40,
    stderr_bytes=0,
)


@given(st.lists(TEXTS, max_size=20), st.dictionaries(TEXTS, TEXTS, max_size=20), st.booleans())
async def test_a_status_is_read_as_its_message(args: list[str], envs: dict[str, str], with_envs: bool) -> None:
    job = msgspec.structs.replace(JOB, spec=msgspec.structs.replace(JOB.spec, args=tuple(args), envs=envs))
    message = to_job(job)
    message.envs = envs if with_envs else {}
    data = (await encode_status(job, with_envs=with_envs, pause=_pause)).data
    assert data[:5] == b"\0" + (len(data) - 5).to_bytes(4)
    assert StatusResponse.parse(data[5:]) == StatusResponse(job=message)


async def test_the_status_of_a_job_with_very_many_arguments_is_encoded_in_parts() -> None:
    PAUSES.clear()
    many = {str(number): "" for number in range(10_000)}
    job = msgspec.structs.replace(JOB, spec=msgspec.structs.replace(JOB.spec, args=tuple(many), envs=many))
    message = StatusResponse.parse((await encode_status(job, with_envs=True, pause=_pause)).data[5:])
    assert message.job is not None
    assert (message.job.args, message.job.envs) == ([*many], many)
    assert len(PAUSES) > 4


@given(st.lists(st.lists(TEXTS, max_size=5), max_size=5), st.text(max_size=30))
def test_a_list_is_read_as_its_message(lists: list[list[str]], token: str) -> None:
    rows: list[Job | DamagedJob] = [
        msgspec.structs.replace(JOB, spec=msgspec.structs.replace(JOB.spec, args=tuple(args))) for args in lists
    ]
    rows.append(DamagedJob(id="id", owner=JOB.spec.owner, created_ns=1, damage="it is cut off"))
    data = encode_list(map(encode_row, rows), token).data
    message = ListResponse(jobs=[*map(to_row, rows)], next_page_token=token)
    assert ListResponse.parse(data[5:]) == message
