"""What a list holds of each job is bounded."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.logs import ME, run, shell
from workerd.engine.engine import Engine
from workerd.engine.job import (
    DamagedJob,
    Job,
    JobEnd,
    JobSpec,
    JobState,
    JobStatus,
    Killed,
    Lost,
    Stopped,
    StreamSummary,
    User,
)
from workerd.engine.listing import ARGUMENT_BYTES, PAGE_BYTES, row_bytes, shorten
from workerd.engine.request import SpawnRequest
from workerd.engine.standing import Found
from workerd.translate import to_row

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SUMMARY = StreamSummary(2**63 - 1, "f" * 32)
END = JobEnd(
    cause=Lost("the machine was restarted"),
    started_ns=2**62,
    ended_ns=2**62,
    user_cpu_seconds=1e9,
    system_cpu_seconds=1e9,
    peak_memory_bytes=2**63 - 1,
    stdout=SUMMARY,
    stderr=SUMMARY,
)


def job_of(args: tuple[str, ...], *, end: JobEnd | None = None, text: str = "") -> Job:
    """Make a job whose numbers are as long as they can be."""
    return Job(
        spec=JobSpec(
            id="28535ea6-a466-5cc2-b1e7-f3853b0251cb",
            owner=User("28535ea6-a466-5cc2-b1e7-f3853b0251cb", text),
            program=f"/{text}",
            args=args,
            envs={"SECRET": "x" * 100_000},
            working_directory=f"/{text}",
            name=text,
            timeout_seconds=1e9,
            max_log_bytes=2**64 - 1,
            created_ns=2**62,
            spawned_by=User(text, text),
        ),
        status=JobStatus(
            state=JobState.ENDED if end else JobState.RUNNING, pid=2**31, started_ns=2**62, waits_for_room=True, end=end
        ),
        stdout_bytes=2**64 - 1,
        stderr_bytes=2**64 - 1,
        kept_from=2**64 - 1,
    )


@given(st.lists(TEXTS, max_size=300).map(tuple), TEXTS, st.sampled_from(["", "lost", "stopped"]))
def test_a_row_takes_no_more_bytes_than_are_counted(args: tuple[str, ...], text: str, ended: str) -> None:
    cause = Lost(text * 10) if ended == "lost" else Stopped(User(text, text), 15, Killed(9))
    row = shorten(job_of(args, end=msgspec.structs.replace(END, cause=cause) if ended else None, text=text))
    assert len(bytes(to_row(row))) <= row_bytes(row)
    damaged = DamagedJob(id=row.id, owner=row.spec.owner, created_ns=1, damage=text)
    assert len(bytes(to_row(damaged))) <= row_bytes(damaged)


@pytest.mark.parametrize("args", [("é" * 200_000,), ("",) * 65_536, ("x" * 100,) * 1000], ids=["long", "many", "both"])
def test_arguments_are_cut_where_they_are_too_long_and_marked(args: tuple[str, ...]) -> None:
    row = shorten(job_of(args))
    assert row.args_cut
    assert row.spec.envs == {}
    assert sum(len(arg.encode()) for arg in row.spec.args) <= ARGUMENT_BYTES
    assert row.spec.args[:-1] == args[: len(row.spec.args) - 1]
    assert args[len(row.spec.args) - 1].startswith(row.spec.args[-1])


def test_arguments_that_are_short_enough_are_left_whole_and_unmarked() -> None:
    args = ("-c", "make -C /srv/project test " * 100)
    row = shorten(job_of(args))
    assert (row.spec.args, row.args_cut) == (args, False)


async def test_a_page_is_bounded_in_bytes_and_the_next_goes_on(engine: Engine) -> None:
    ids = [
        await engine.spawn(SpawnRequest(owner=ME, program="true", args=("x" * 100_000,), working_directory="/" * 4000))
        for _ in range(150)
    ]
    pages, after = [], None
    while True:
        page = await engine.list_jobs(ME.id, states=(), name="", size=1000, after=after)
        assert sum(map(row_bytes, page.rows)) <= PAGE_BYTES
        pages.append([job.id for job in page.jobs])
        after = page.next
        if after is None:
            break
    assert [job_id for page in pages for job_id in page] == ids[::-1]
    assert len(pages) == 2


async def test_a_page_that_looks_long_for_jobs_in_a_state_ends_and_the_next_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page may be empty, and each job is looked at once."""
    running = await engine.spawn(shell("sleep 1000"))
    for _ in range(4):
        await run(engine, shell("true"))
    monkeypatch.setattr("workerd.engine.engine.PAGE_SECONDS", 0.0)
    looked: list[str] = []
    pages: list[list[str]] = []
    after = None
    find = Engine.find

    def note(self: Engine, job_id: str) -> Found:
        looked.append(job_id)
        return find(self, job_id)

    monkeypatch.setattr(Engine, "find", note)
    while True:
        states = (JobState.RUNNING, JobState.DAMAGED)
        page = await engine.list_jobs(ME.id, states=states, name="", size=10, after=after)
        pages.append([job.id for job in page.jobs])
        after = page.next
        if after is None:
            break
    assert pages == [[], [], [], [], [running]]
    assert len(looked) == len({*looked}) == 5
