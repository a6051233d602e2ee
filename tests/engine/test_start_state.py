"""What a process gives up and takes on before it executes a job's program."""

import contextlib
import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from tests.engine.logs import run, shell
from workerd.engine import linux, program, start_state
from workerd.engine.control import Control
from workerd.engine.engine import Engine
from workerd.engine.errors import ResourcesExhausted
from workerd.engine.folder import JobFolder
from workerd.engine.job import Exited
from workerd.engine.storage import DEFAULT_STORAGE


@pytest.mark.parametrize(("before", "after"), [("-1000\n", "0"), ("-1\n", "0"), ("0\n", "0"), ("300\n", "300")])
def test_the_kernel_spares_no_job_when_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """The file is one of the test's own: to lower the real one takes CAP_SYS_RESOURCE (proc_pid_oom_score_adj(5))."""
    score = tmp_path / "oom_score_adj"
    score.write_text(before)
    monkeypatch.setattr(start_state, "_OOM_SCORE_ADJ", str(score))
    start_state._give_up_precedence()
    assert score.read_text().strip() == after


@pytest.mark.parametrize(
    ("wanted", "hard", "soft"),
    [
        (1024, 4096, 1024),
        (1024, 512, 512),
        (1024, resource.RLIM_INFINITY, 1024),
        (resource.RLIM_INFINITY, 512, 512),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_a_soft_limit_is_never_above_the_hard_one(wanted: int, hard: int, soft: int) -> None:
    assert start_state._least(wanted, hard) == soft


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOMEM])
def test_a_job_that_gets_no_session_keyring_does_not_start_with_the_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with pytest.raises(ResourcesExhausted, match=f"no session keyring for it: {os.strerror(number)}.*maxkeys"):
        start_without_keyring(tmp_path, monkeypatch, number)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_a_job_starts_where_there_are_no_keyrings_or_a_filter_denies_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pid = start_without_keyring(tmp_path, monkeypatch, number)
    assert os.waitpid(pid, 0) == (pid, 0)


def start_without_keyring(directory: Path, patch: pytest.MonkeyPatch, number: int) -> int:
    """Start a program as a daemon of root does; the kernel refuses it a keyring with an error. Return its process."""

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(linux, "join_new_session_keyring", refuse)
    patch.setattr(os, "geteuid", lambda: 0)
    spec = shell("true", working_directory="/").specify("11111111-1111-4111-8111-111111111111", 1, DEFAULT_STORAGE)
    control = Control(JobFolder(directory), lambda _: None)
    with contextlib.closing(control), open(os.devnull, "wb") as null:
        streams = {"stdout": null.fileno(), "stderr": null.fileno()}
        pid, _ = program.start(spec, "mark", control, **streams, cgroup_directory=None)
    return pid


async def test_jobs_of_an_engine_end_where_the_end_of_children_is_not_reported(tmp_path: Path) -> None:
    """The process of the engine blocks SIGCHLD; zygote and supervisors see to their signals themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        async with Engine(tmp_path) as engine:
            end = (await run(engine, shell("exit 3"))).end
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert end is not None
    assert end.cause == Exited(3)
