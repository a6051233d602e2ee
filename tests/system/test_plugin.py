"""Plugins as a stranger makes them: wheels that are installed beside workerd's own, found by both programs."""

import contextlib
import json
import os
import re
import subprocess
import sys
import uuid
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.daemon import end_jobs

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "disk-usage"
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"
dependencies = ["workerd", "workerd-disk-usage"]

[project.entry-points."{group}"]
{entry_point} = "{module}:{attribute}"
"""
MEASURES_TOO = """
from workerd.handler import handles
from workerd_disk_usage._pb.diskusage.v1 import DiskUsageServiceBase, MeasureResponse

@handles(DiskUsageServiceBase, "Measure", right="measure")
async def handler(call, request):
    return MeasureResponse(job_bytes=0)
"""
NAMES_NO_RIGHT = """
from worker_api.worker.v1 import StatusResponse, WorkerServiceBase
from workerd.handler import handles

@handles(WorkerServiceBase, "Status")
async def handler(call, request):
    return StatusResponse()
"""
DOES_NOT_STREAM = """
from worker_api.worker.v1 import StreamLogResponse, WorkerServiceBase
from workerd.handler import handles

@handles(WorkerServiceBase, "StreamLog", right="stream-log")
async def handler(call, request):
    return StreamLogResponse()
"""


def build(source: Path, folder: Path) -> Path:
    """Build a package's wheel into a folder of its own."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run([*command, "--outdir", folder, source], check=True, timeout=100)
    [wheel] = folder.iterdir()
    return wheel


def link_requirements(wheel: Path, folder: Path) -> None:
    """Link what a wheel requires, and what that requires, from the environment that the tests run in; nothing else.

    So the network is not needed, workerd itself can come from its wheel alone, and what it uses without requiring it
    is missing.
    """
    [packed] = distributions(path=[str(wheel)])
    waiting = _requirements(packed.requires)
    linked: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if requirement.name in linked:
            continue
        linked.add(requirement.name)
        found = distribution(requirement.name)
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (folder / name).symlink_to(str(found.locate_file(name)))
        waiting += _requirements(found.requires, requirement.extras)


def _requirements(lines: Iterable[str] | None, extras: Iterable[str] = ()) -> list[Requirement]:
    requirements = map(Requirement, lines or ())
    wanted = ("", *extras)
    return [each for each in requirements if not each.marker or any(each.marker.evaluate({"extra": e}) for e in wanted)]


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own."""

    root: Path

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one of the environment's programs, away from the sources and untouched by this process's settings."""
        return subprocess.run(
            [self.root / "bin" / program, *arguments],
            capture_output=True,
            check=False,
            cwd=self.root,
            env=self._variables(),
            text=True,
            timeout=60,
        )

    def pip(self, *arguments: str | Path) -> None:
        """Run pip, which is to succeed and to ask nobody on the network."""
        result = self.run("python", "-m", "pip", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr

    @contextlib.contextmanager
    def with_package(self, name: str, source: Path) -> Iterator[None]:
        """Have a package installed for a while."""
        self.pip("install", "--no-index", build(source, source / "dist"))
        try:
            yield
        finally:
            self.pip("uninstall", "--yes", name)

    @contextlib.contextmanager
    def daemon(self, state: Path) -> Iterator["Installed"]:
        """Run the environment's workerd."""
        state.mkdir()
        with (state / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                [str(self.root / "bin" / "workerd"), "--listen", "127.0.0.1:0", "--state-dir", str(state)],
                cwd=self.root,
                env=self._variables(),
                stderr=errors,
                stdout=subprocess.PIPE,
                text=True,
            )
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith("serving gRPC endpoint at 127.0.0.1:"), line + (state / "stderr").read_text()
                yield Installed(self, f"https://localhost:{line.rpartition(':')[2].strip()}", state / "pki")
            finally:
                process.terminate()
                process.wait(timeout=30)
                end_jobs(state)

    def _variables(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WORKER"))}
        return ours | {"HOME": str(self.root), "XDG_STATE_HOME": str(self.root / "state")}


@dataclass(frozen=True)
class Installed:
    """A daemon that an environment's workerd serves, and that environment's workerctl for it."""

    environment: Environment
    endpoint: str
    pki: Path

    def workerctl(self, *arguments: str, user: str) -> subprocess.CompletedProcess[str]:
        """Run workerctl as a user of the daemon."""
        options = ("--endpoint", self.endpoint, "--pki-dir", self.pki, "--username", user)
        return self.environment.run("workerctl", *options, *arguments)

    def make_user(self) -> str:
        """Make somebody who has no job yet."""
        user = f"user-{uuid.uuid4()}"
        assert self.workerctl("pki", "issue-client", user, user=user).returncode == 0
        return user

    def run_job(self, script: str, user: str) -> str:
        """Run a job to its end and return its id."""
        job_id = self.workerctl("spawn", "--", "sh", "-c", script, user=user).stdout.strip()
        log = self.workerctl("stream-log", "--past-events", "--uuid", job_id, user=user)
        assert log.returncode == 0, log.stderr
        return job_id


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with workerd and the example, installed from their wheels."""
    folder = tmp_path_factory.mktemp("plugin")
    workerd = build(ROOT, folder / "workerd")
    example = build(EXAMPLE, folder / "example")
    environment = Environment(folder / "environment")
    venv.create(environment.root, with_pip=True)
    [site_packages] = environment.root.glob("lib/python*/site-packages")
    third_party = folder / "third_party"
    third_party.mkdir()
    link_requirements(workerd, third_party)
    (site_packages / "third_party.pth").write_text(f"{third_party}\n")
    environment.pip("install", "--no-index", workerd, example)
    return environment


@pytest.fixture(scope="module")
def daemon(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """A daemon with the example, for all tests that do not harm it."""
    with environment.daemon(tmp_path_factory.mktemp("daemon") / "state") as daemon:
        yield daemon


def write_package(folder: Path, name: str, group: str, entry_point: str, attribute: str, code: str) -> Path:
    """Write a plugin package of one module."""
    module = name.replace("-", "_")
    folder.mkdir()
    (folder / f"{module}.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        PYPROJECT.format(name=name, group=group, entry_point=entry_point, module=module, attribute=attribute)
    )
    return folder


def test_what_runs_is_what_the_wheels_held(environment: Environment) -> None:
    """None of it comes from the sources, which the environment that runs the tests may have on its path."""
    modules = ("audit", "pki", "worker_api", "workerctl", "workerd", "workerd_disk_usage")
    code = f"import {', '.join(modules)}\nfor module in ({', '.join(modules)}): print(module.__file__)"
    found = environment.run("python", "-c", code)
    assert found.returncode == 0, found.stderr
    [site_packages] = environment.root.glob("lib/python*/site-packages")
    assert [Path(line) for line in found.stdout.splitlines()] == [site_packages / m / "__init__.py" for m in modules]


def test_help_lists_a_plugins_command_beside_ours(environment: Environment) -> None:
    result = environment.run("workerctl", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(r"disk-usage +Show how much", result.stdout)
    assert re.search(r"spawn +Start a program", result.stdout)


def test_a_plugins_command_reaches_its_handler(daemon: Installed) -> None:
    user = daemon.make_user()
    daemon.run_job("printf 123", user)
    job_id = daemon.run_job("printf 12345; printf 1234567 >&2", user)
    result = daemon.workerctl("disk-usage", "--uuid", job_id, "--output", "json", user=user)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"job_bytes": 12, "all_bytes": 15, "job_count": 2}
    result = daemon.workerctl("disk-usage", "--uuid", job_id, user=user)
    assert result.stdout == "12 bytes, of 15 bytes in all; your jobs: 2\n"


def test_another_users_job_is_not_found_by_a_plugin_either(daemon: Installed) -> None:
    job_id = daemon.run_job("echo secret", daemon.make_user())
    absent = str(uuid.uuid4())
    stranger = daemon.make_user()
    theirs, nobodys = (daemon.workerctl("disk-usage", "--uuid", each, user=stranger) for each in (job_id, absent))
    assert (theirs.returncode, theirs.stdout) == (123, "")
    assert (nobodys.returncode, nobodys.stdout) == (123, "")
    assert theirs.stderr.replace(job_id, absent) == nobodys.stderr


def test_a_plugins_right_is_among_the_callers_rights(daemon: Installed) -> None:
    rights = json.loads(daemon.workerctl("whoami", "--output", "json", user=daemon.make_user()).stdout)["rights"]
    assert {"measure", "spawn"} <= set(rights)


@pytest.mark.parametrize(
    ("code", "problem", "also_named"),
    [
        (MEASURES_TOO, "/diskusage.v1.DiskUsageService/Measure is served by", ("'measure'", "'workerd-disk-usage'")),
        (NAMES_NO_RIGHT, "missing 1 required keyword-only argument: 'right'", ()),
        (DOES_NOT_STREAM, "/worker.v1.WorkerService/StreamLog needs an async def that yields", ()),
    ],
    ids=["an RPC that another serves", "no right", "the wrong shape"],
)
def test_a_handler_that_cannot_be_served_keeps_the_daemon_from_starting(
    environment: Environment, tmp_path: Path, code: str, problem: str, also_named: tuple[str, ...]
) -> None:
    """It says so in one line that names the entry point and its package, and has done nothing yet."""
    source = write_package(tmp_path / "package", "bad-plugin", "workerd.handlers", "odd", "handler", code)
    with environment.with_package("bad-plugin", source):
        result = environment.run("workerd", "--listen", "127.0.0.1:0", "--state-dir", tmp_path / "state")
    assert (result.returncode, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("workerd: the handler ")
    for named in ("'odd'", "'bad-plugin'", "cannot be served", problem, *also_named):
        assert named in line
    assert not (tmp_path / "state").exists()


def test_a_command_that_cannot_be_loaded_is_one_warning_and_takes_nothing_with_it(
    environment: Environment, daemon: Installed, tmp_path: Path
) -> None:
    code = 'raise RuntimeError("no luck today")'
    source = write_package(tmp_path / "package", "bad-plugin", "workerctl.commands", "lucky", "command", code)
    with environment.with_package("bad-plugin", source):
        shown = environment.run("workerctl", "--help")
        used = daemon.workerctl("whoami", user=daemon.make_user())
        wanted = environment.run("workerctl", "lucky")
    assert shown.stderr == "workerctl: the command 'lucky' of 'bad-plugin' cannot be loaded: no luck today\n"
    assert shown.returncode == 0
    assert {"disk-usage", "spawn"} <= set(shown.stdout.split())
    assert (used.returncode, used.stderr) == (0, "")
    assert wanted.returncode == 2
    assert wanted.stderr.startswith(shown.stderr)
