"""How results look to people."""

from datetime import timedelta

import pytest
from worker_api.worker.v1 import Exited, Job, JobEnd, Lost, User

from workerctl.output import describe_job, describe_jobs, print_job, to_plain


def described(job: Job) -> str:
    return "\n".join(describe_job(job))


def test_of_a_lost_job_nothing_is_said_that_nobody_knows() -> None:
    assert "used: " in described(Job(end=JobEnd(exited=Exited(code=0), user_cpu_time=timedelta(seconds=1))))
    text = described(Job(end=JobEnd(lost=Lost(detail="the machine was restarted"))))
    assert "lost: the machine was restarted" in text
    assert "used: " not in text


def test_a_long_command_is_cut_in_a_list_and_whole_in_a_description() -> None:
    job = Job(program="true", args=["x" * 100_000])
    line = describe_jobs([job])[1]
    assert "x…" in line
    assert len(line) < 300
    assert "x" * 100_000 in described(job)


def test_variables_are_shown_one_on_a_line_whatever_they_hold(capfd: pytest.CaptureFixture[str]) -> None:
    job = Job(envs={"LINES": "one\ntwo\x1b[2J", "EMPTY": "", "A": "b=ü"})
    print_job(job, "text")
    assert capfd.readouterr().out.splitlines()[-3:] == [
        "variable:   A=b=ü",
        "variable:   EMPTY=",
        r"variable:   LINES=one\ntwo\x1b[2J",
    ]
    assert to_plain(job)["envs"] == job.envs


def test_whoever_acted_for_the_owner_and_another_account_are_shown_if_there_are() -> None:
    job = Job(owner=User(name="acrimon"), spawned_by=User(name="operator"), run_as="nobody")
    assert "owner:      acrimon\nspawned by: operator\nruns as:    nobody\n" in described(job)
    plain = described(Job(owner=User(name="acrimon")))
    assert "spawned by" not in plain
    assert "runs as" not in plain


def test_arguments_that_are_not_all_there_are_marked() -> None:
    job = Job(program="make", args=["test"], args_cut=True)
    assert describe_jobs([job])[-1].endswith("make test …")
    assert "arguments:  test … (`workerctl status` shows all)" in describe_job(job)
    assert to_plain(job)["args_cut"] is True


@pytest.mark.parametrize(("peak", "told"), [(0, "0.500 s of processor time"), (3 << 20, "3.0 MiB at most")])
def test_a_peak_of_memory_that_is_not_known_is_left_out(peak: int, told: str) -> None:
    end = JobEnd(exited=Exited(code=0), user_cpu_time=timedelta(seconds=0.5), peak_memory_bytes=peak)
    (used,) = (line for line in describe_job(Job(end=end)) if line.startswith("used:"))
    assert used.endswith(told)
