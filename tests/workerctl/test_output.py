"""How results look to people."""

from datetime import timedelta

from worker_api.worker.v1 import Exited, Job, JobEnd, Lost, User

from workerctl.output import describe_job, describe_jobs, to_plain


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


def test_variables_are_shown_one_on_a_line_whatever_they_hold() -> None:
    job = Job(envs={"LINES": "one\ntwo\x1b[2J", "EMPTY": "", "A": "b=ü"})
    assert describe_job(job).splitlines()[-3:] == [
        "variable:   A=b=ü",
        "variable:   EMPTY=",
        r"variable:   LINES=one\ntwo\x1b[2J",
    ]
    assert to_plain(job)["envs"] == job.envs


def test_whoever_acted_for_the_owner_and_another_account_are_shown_if_there_are() -> None:
    job = Job(owner=User(name="acrimon"), spawned_by=User(name="operator"), run_as="nobody")
    assert "owner:      acrimon\nspawned by: operator\nruns as:    nobody\n" in describe_job(job)
    plain = describe_job(Job(owner=User(name="acrimon")))
    assert "spawned by" not in plain
    assert "runs as" not in plain
