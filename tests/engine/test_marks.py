"""Which processes count as those of a lost job that had no cgroup: those of its account with its mark."""

import asyncio
import contextlib
import errno
import os
import pwd
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from tests.conftest import PROGRAMS
from tests.engine.logs import shell
from tests.waiting import LIMIT_SECONDS, wait_until
from workerd.engine import tree
from workerd.engine.errors import NoAnswer
from workerd.engine.identity import MARK_VARIABLE
from workerd.engine.program import build_environment
from workerd.engine.remains import MarkKiller, Remains
from workerd.engine.storage import DEFAULT_STORAGE as STORAGE

MARK = "MARK=of these tests"
OWN = os.geteuid()
as_root = pytest.mark.skipif(OWN != 0, reason="only root may take on another account")


@contextlib.contextmanager
def marked(*command: str, count: int = 1, **options: object) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run a command some times with the mark, until it prints a line, and end it afterwards."""
    environment = dict([MARK.split("=")])
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
            )  # type: ignore[call-overload]
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            if (said := process.stdout.readline()).startswith(b"refused"):
                pytest.skip(f"this kernel has no PR_SET_MM_MAP: {said.decode()}")
            assert said == b"ready\n"
        yield processes


# No more execve(2) once it is ready, during which a process shows no environment.
WAITS = ("/bin/sh", "-c", "exec /bin/sh -c 'echo ready; read line'")


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_of_many_processes_that_are_killed_few_are_held() -> None:
    with marked(*WAITS, count=2 * tree.MOST_HELD) as many:
        handles = tree.kill_marked(MARK, OWN)
        for handle in handles:
            os.close(handle)
        assert len(handles) == tree.MOST_HELD
        assert {process.wait(LIMIT_SECONDS) for process in many} == {-signal.SIGKILL}


@pytest.mark.parametrize("room", [1, 2, 4])
def test_no_process_is_held_after_a_lack_of_descriptors(room: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with marked(*WAITS, count=2 * tree.MOST_HELD):
        before = open_descriptors()
        with contextlib.ExitStack() as stack:
            free = os.open(os.devnull, os.O_RDONLY)
            os.close(free)
            stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + room + 1, hard))
            with pytest.raises(OSError) as failed:
                tree.kill_marked(MARK, OWN)
        assert failed.value.errno == errno.EMFILE
        assert open_descriptors() == before


@as_root
@pytest.mark.parametrize("which", ["all", "real", "effective", "saved"])
def test_a_process_that_is_not_the_accounts_alone_is_left_alone(which: str) -> None:
    """As a program with the set-user-ID bit: its real user is who started it, who chose its environment."""
    other = pwd.getpwnam("nobody").pw_uid
    names = ("real", "effective", "saved")
    ids = tuple(0 if which in ("all", name) else other for name in names)
    code = f"import os, time; os.setresuid{ids}; print('ready', flush=True); time.sleep(1000)"
    with marked(sys.executable, "-c", code) as [process]:
        assert tree.kill_marked(MARK, other) == []
        assert process.poll() is None


@as_root
def test_a_process_of_the_account_is_killed_by_root() -> None:
    other = pwd.getpwnam("nobody").pw_uid
    with marked(*WAITS, user=other) as [process]:
        for handle in tree.kill_marked(MARK, other):
            os.close(handle)
        assert process.wait(LIMIT_SECONDS) == -signal.SIGKILL


def test_an_environment_of_any_length_is_read_only_so_far() -> None:
    """A process may say that it has a long one, which takes it no memory (PR_SET_MM(2const))."""
    command = (sys.executable, str(PROGRAMS / "long_environment.py"), str(256 << 20))
    try:
        with marked(*command):
            tracemalloc.start()
            tree.kill_marked(MARK, OWN)
            _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 << 20


def test_a_job_with_a_long_environment_is_found() -> None:
    """Wherever a shell has put the mark in it."""
    envs = {MARK_VARIABLE: "chosen", **{f"LONG_{number}": "x" * 100_000 for number in range(15)}}
    spec = shell("true", working_directory="/", envs=envs).specify("11111111-1111-4111-8111-111111111111", 1, STORAGE)
    environment = build_environment(spec, "of these tests")
    assert environment[MARK_VARIABLE] == "of these tests"
    process = subprocess.Popen(WAITS, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for handle in tree.kill_marked(f"{MARK_VARIABLE}=of these tests", OWN):
            os.close(handle)
        assert process.wait(LIMIT_SECONDS) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


async def test_a_look_that_an_account_holds_up_holds_up_no_other_and_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by an environment on a file that is never read to its end: here the look waits for a pipe."""
    killer = MarkKiller(most=1, limit_seconds=0.3)
    read_end, write_end = os.pipe()
    kill_marked, done = tree.kill_marked, threading.Event()

    def wait(variable: str, uid: int) -> list[int]:
        handles = kill_marked(variable, OWN)
        if uid != OWN:
            os.read(read_end, 1)
            done.set()
        return handles

    monkeypatch.setattr(tree, "kill_marked", wait)
    with marked(*WAITS) as [process]:
        before = open_descriptors()
        with pytest.raises(NoAnswer, match=r"looking for a job's processes took more than 0\.3 s"):
            await killer.kill(Remains(None, MARK, OWN + 1))
        assert process.wait(LIMIT_SECONDS) == -signal.SIGKILL
        async with asyncio.timeout(LIMIT_SECONDS):
            assert await killer.kill(Remains(None, MARK, OWN)) == []
        assert open_descriptors() > before
        os.write(write_end, b"x")
        assert done.wait(LIMIT_SECONDS)
        wait_until(lambda: open_descriptors() == before, "its handles are open")
    os.close(read_end)
    os.close(write_end)
