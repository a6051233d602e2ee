"""Starting programs: what they see, and why they could not be started."""

import errno
import json
import os
import pwd
import uuid
from pathlib import Path

import pytest

from tests.engine.logs import ME, program, run, shell
from tests.signals import read_mask
from workerd.engine import identity
from workerd.engine.control import Control
from workerd.engine.engine import Engine
from workerd.engine.errors import (
    ArgumentsTooLong,
    CannotStart,
    InvalidArgument,
    LauncherFailed,
    ProgramNotExecutable,
    ProgramNotFound,
    ResourcesExhausted,
    WorkingDirectoryUnusable,
)
from workerd.engine.folder import JobFolder
from workerd.engine.job import Exited, JobSpec, Killed
from workerd.engine.program import start
from workerd.engine.request import SpawnRequest
from workerd.engine.storage import DEFAULT_STORAGE


async def test_a_program_gets_a_clean_start(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAEMON_SECRET", "not for jobs")
    envs = {"MINE": "=,ä", "WORKERD_JOB_ID": "another's", "WORKERD_JOB_MARK": "another's"}
    request = program("inspect_process", "a,b", "c d", "é\n", envs=envs, working_directory=str(tmp_path))
    seen = json.loads((await run(engine, request)).stdout)
    assert seen["arguments"] == ["a,b", "c d", "é\n"]
    assert set(seen["environment"]) - {"LC_CTYPE"} == {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "WORKERD_JOB_ID", "WORKERD_JOB_MARK", "MINE")
    }
    assert seen["environment"]["MINE"] == "=,ä"
    assert seen["environment"]["WORKERD_JOB_ID"] == str(uuid.UUID(seen["environment"]["WORKERD_JOB_ID"]))
    spool = identity.read(tmp_path / "state" / "spool")
    mark = identity.job_mark(spool, seen["environment"]["WORKERD_JOB_ID"])
    assert seen["environment"]["WORKERD_JOB_MARK"] == mark
    assert seen["environment"]["HOME"] == pwd.getpwuid(os.geteuid()).pw_dir
    descriptors = seen["descriptors"]
    assert descriptors.pop("0") == "/dev/null"
    assert descriptors.pop("1").startswith("pipe:")
    assert descriptors.pop("2").startswith("pipe:")
    assert all(path.startswith("/proc/") for path in descriptors.values()), "a descriptor was inherited"
    assert seen["directory"] == str(tmp_path)
    assert seen["session_leader"]
    assert read_mask(seen["blocked"]) == 0


async def test_signals_have_their_default_effect(engine: Engine) -> None:
    """A shell sees ignored signals as such: SIGPIPE is what Python ignores, SIGCHLD what the zygote does."""
    log = await run(engine, shell("grep -E '^Sig(Ign|Blk)' /proc/self/status"))
    assert {read_mask(line.split(b":")[1]) for line in log.stdout.splitlines()} == {0}


async def test_a_name_is_looked_up_in_the_jobs_own_path(engine: Engine, tmp_path: Path) -> None:
    tool = tmp_path / "some-tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    request = SpawnRequest(owner=ME, program="some-tool", envs={"PATH": f"/nowhere:{tmp_path}"})
    assert (await run(engine, request)).stdout == b"found\n"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("no-such-program", ProgramNotFound),
        ("/no/such/program", ProgramNotFound),
        ("/etc/passwd", ProgramNotExecutable),
        ("/etc", ProgramNotExecutable),
    ],
)
async def test_a_program_that_cannot_be_started_fails_the_spawn(
    engine: Engine, name: str, error: type[CannotStart], tmp_path: Path
) -> None:
    with pytest.raises(error):
        await engine.spawn(SpawnRequest(owner=ME, program=name))
    assert list((tmp_path / "state" / "jobs").iterdir()) == [], "something is left of the job"


async def test_a_script_without_its_interpreter_is_not_executable(engine: Engine, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    with pytest.raises(ProgramNotExecutable, match="interpreter"):
        await engine.spawn(SpawnRequest(owner=ME, program=str(script)))


async def test_a_file_of_no_format_is_not_executable(engine: Engine, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo no shell is involved\n")
    script.chmod(0o755)
    with pytest.raises(ProgramNotExecutable, match="format"):
        await engine.spawn(SpawnRequest(owner=ME, program=str(script)))


async def test_a_state_directory_that_is_broken_is_no_want_of_room(engine: Engine, tmp_path: Path) -> None:
    """Nobody is told to make room, which would not help."""
    (tmp_path / "state" / "drafts").rmdir()
    with pytest.raises(FileNotFoundError):
        await engine.spawn(shell("true"))


async def test_a_fault_of_the_supervisors_is_no_want_of_room_either(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = JobFolder.create

    def obstruct(folder: JobFolder, spec: JobSpec, spool: str, identity_file: Path) -> int:
        lock = create(folder, spec, spool, identity_file)
        folder.output.mkdir()
        return lock

    monkeypatch.setattr(JobFolder, "create", obstruct)
    with pytest.raises(LauncherFailed, match="Is a directory"):
        await engine.spawn(shell("true"))


async def test_a_zygote_that_cannot_be_asked_for_want_of_something_lives_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    zygote = engine._launcher._zygote

    def fail(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    monkeypatch.setattr("workerd.engine.launcher.socket.send_fds", fail)
    with pytest.raises(ResourcesExhausted):
        await engine.spawn(shell("true"))
    assert engine._launcher._zygote is zygote
    monkeypatch.undo()
    await run(engine, shell("true"))


async def test_a_fault_before_the_program_is_executed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("workerd.engine.linux.set_parent_death_signal", fail)
    spec = shell("true", working_directory="/").specify("00000000-0000-4000-8000-000000000000", 1, DEFAULT_STORAGE)
    control = Control(JobFolder(tmp_path), lambda _: None)
    with (tmp_path / "output").open("wb") as output, pytest.raises(CannotStart, match=r"RuntimeError\('a mistake'\)"):
        start(spec, "a mark", control, stdout=output.fileno(), stderr=output.fileno(), cgroup_directory=None)
    control.close()


async def test_a_missing_working_directory_fails_the_spawn(engine: Engine) -> None:
    with pytest.raises(WorkingDirectoryUnusable):
        await engine.spawn(shell("true", working_directory="/no/such/directory"))


async def test_arguments_that_the_kernel_refuses_fail_the_spawn(engine: Engine) -> None:
    with pytest.raises(ArgumentsTooLong):
        await engine.spawn(SpawnRequest(owner=ME, program="/bin/true", args=("x" * 200_000,)))


@pytest.mark.parametrize(
    "request_",
    [
        SpawnRequest(owner=ME, program=""),
        SpawnRequest(owner=ME, program="./relative"),
        SpawnRequest(owner=ME, program="true", working_directory="relative"),
        SpawnRequest(owner=ME, program="true", args=("a\0b",)),
        SpawnRequest(owner=ME, program="true", envs={"A=B": "c"}),
        SpawnRequest(owner=ME, program="true", envs={"": "c"}),
        SpawnRequest(owner=ME, program="true", timeout_seconds=0),
        SpawnRequest(owner=ME, program="true", name="x" * 257),
    ],
    ids=lambda request: str(request)[-60:],
)
async def test_impossible_arguments_are_refused(engine: Engine, request_: SpawnRequest) -> None:
    with pytest.raises(InvalidArgument):
        await engine.spawn(request_)


async def test_the_end_tells_the_exit_code(engine: Engine) -> None:
    end = (await run(engine, shell("exit 7"))).end
    assert end is not None
    assert end.cause == Exited(7)


async def test_the_end_tells_the_signal(engine: Engine) -> None:
    end = (await run(engine, shell("kill -SEGV $$"))).end
    assert end is not None
    assert end.cause == Killed(11)


async def test_the_end_counts_processor_time_and_memory_of_all_processes(engine: Engine) -> None:
    burn = "import time\nx = bytearray(50_000_000)\nwhile time.process_time() < 0.3: pass"
    end = (await run(engine, shell(f"python3 -c '{burn}'"))).end
    assert end is not None
    assert end.user_cpu_seconds + end.system_cpu_seconds >= 0.3
    assert end.peak_memory_bytes > 50_000_000
    assert end.ended_ns - end.started_ns >= 300_000_000


@pytest.mark.parametrize("args", [(), ("x" * 100_000,)], ids=["nothing", "long arguments"])
async def test_the_memory_of_a_process_before_it_became_the_program_is_not_the_programs(
    engine: Engine, args: tuple[str, ...]
) -> None:
    end = (await run(engine, SpawnRequest(owner=ME, program="true", args=args))).end
    assert end is not None
    assert end.peak_memory_bytes == 0  # a few hundred KiB, which the kernel does not tell


async def test_memory_of_more_than_a_process_had_before_is_told_as_it_was(engine: Engine) -> None:
    hold = "x = bytearray(30_000_000); print(*[line for line in open('/proc/self/status') if 'VmHWM' in line])"
    log = await run(engine, SpawnRequest(owner=ME, program="python3", args=("-c", hold)))
    _, kilobytes, _ = log.stdout.split()  # proc_pid_status(5)
    assert log.end is not None
    assert abs(log.end.peak_memory_bytes - int(kilobytes) * 1024) < 2 << 20


async def test_the_same_key_finds_the_same_job_and_starts_nothing(engine: Engine, tmp_path: Path) -> None:
    script = f"echo once >> {tmp_path}/count"
    ids = {await engine.spawn(shell(script, request_key="k")) for _ in range(3)}
    assert len(ids) == 1
    await run(engine, shell(script, request_key="k"))
    assert (tmp_path / "count").read_text() == "once\n"


async def test_the_same_key_of_another_owner_is_another_job(engine: Engine) -> None:
    mine = await engine.spawn(shell("true", request_key="k"))
    other = SpawnRequest(
        owner=type(ME)("22222222-2222-4222-8222-222222222222", "other"), program="true", request_key="k"
    )
    assert await engine.spawn(other) != mine


async def test_a_key_whose_spawn_failed_can_be_used_again(engine: Engine) -> None:
    with pytest.raises(ProgramNotFound):
        await engine.spawn(SpawnRequest(owner=ME, program="no-such-program", request_key="k"))
    log = await run(engine, shell("echo now", request_key="k"))
    assert log.stdout == b"now\n"
