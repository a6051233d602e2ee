"""How results look to people."""

from datetime import timedelta

from worker_api.worker.v1 import Exited, Job, JobEnd, Lost

from workerctl.output import describe_job, describe_jobs


def test_of_a_lost_job_nothing_is_said_that_nobody_knows() -> None:
    assert "used: " in describe_job(Job(end=JobEnd(exited=Exited(code=0), user_cpu_time=timedelta(seconds=1))))
    text = describe_job(Job(end=JobEnd(lost=Lost(detail="the machine was restarted"))))
    assert "lost: the machine was restarted" in text
    assert "used: " not in text


def test_a_long_command_is_cut_in_a_list_and_whole_in_a_description() -> None:
    job = Job(program="true", args=["x" * 100_000])
    assert "x…" in describe_jobs([job])
    assert len(describe_jobs([job])) < 300
    assert "x" * 100_000 in describe_job(job)
