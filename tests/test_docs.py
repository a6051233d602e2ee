"""What the documentation says is compared with what the programs do."""

import asyncio
import importlib
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import EntryPoint, distribution
from pathlib import Path

import pytest
from cyclopts import App
from worker_api.worker.v1 import SpawnRequest

from audit.chain import GENESIS, make_line
from tests.commands import run_workerctl
from tests.daemon import USER, Daemon, running_daemon
from workerctl.exit_codes import ExitCode
from workerd.access.policy import On
from workerd.engine import start_state
from workerd.registry import load_routes, rights_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CLIENT = (ROOT / "docs" / "workerctl.md").read_text()
DAEMON = (ROOT / "docs" / "workerd.md").read_text()
PLUGINS = (ROOT / "docs" / "plugins.md").read_text()
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md") for path in ROOT.glob(pattern))
EXAMPLE_COMMANDS = re.findall(r"^workerctl --endpoint https://localhost:7005 .*$", README, re.MULTILINE)
OF_A_PARTICULAR_MACHINE = re.compile(r"(?<![\w~.-])(?:/(?:home|root|Users|opt|mnt|media|tmp|work)\b|[A-Z]:\\)")


def installed(group: str) -> list[EntryPoint]:
    """What this distribution offers in an entry-point group."""
    return sorted(distribution("workerd").entry_points.select(group=group))


def names(entry_points: list[EntryPoint]) -> list[str]:
    return [entry_point.name for entry_point in entry_points]


def section(page: str, heading: str) -> str:
    """The part of a page from a heading to the next of its level or above."""
    level = heading.index(" ")
    found = re.search(rf"^{heading}$(.*?)(?=^#{{1,{level}}} |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"there is no section {heading}"
    return found[1]


def first_column(text: str) -> list[str]:
    """What stands in the first column of a section's tables."""
    return [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("|")]


def code(page: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def options(*command: str) -> set[str]:
    """The options that a program's help shows."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    match command:
        case ("workerctl", *subcommand):
            result = run_workerctl(*subcommand, "--help", environment=environment)
        case _:
            help_of = [sys.executable, "-m", *command, "--help"]
            result = subprocess.run(help_of, capture_output=True, check=False, env=environment, timeout=60)
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"--[a-z][a-z-]+", re.sub(r"(?m)^Example: .*$", "", result.stdout.decode())))


def documented_options(text: str) -> set[str]:
    return {option for cell in first_column(text) for option in re.findall(r"--[a-z][a-z-]+", cell)}


def test_every_exit_code_is_in_the_clients_table_and_no_other() -> None:
    numbers = [int(cell) for cell in first_column(section(CLIENT, "## Signals and exit codes")) if cell.isdecimal()]
    assert numbers == sorted(ExitCode)


def test_every_option_of_the_daemon_is_documented_and_no_other() -> None:
    assert documented_options(section(DAEMON, "## Options")) == options("workerd")


def test_every_soft_limit_of_a_job_is_documented_and_no_other() -> None:
    [row] = re.findall(r"^\| Soft limits .* \|$", section(DAEMON, "### What a job starts with"), re.MULTILINE)
    limits = {f"RLIMIT_{name.upper()}": int(value) for name, value in re.findall(r"`(\w+)` (\d+)", row)}
    assert {getattr(resource, name): value for name, value in limits.items()} == start_state.SOFT_LIMITS


def test_every_command_is_documented_and_no_other() -> None:
    headings = set(re.findall(r"^### (\S+)$", section(CLIENT, "## Options"), re.MULTILINE))
    assert headings == {*names(installed("workerctl.commands")), "JSON"}


@pytest.mark.parametrize("command", names(installed("workerctl.commands")))
def test_every_option_of_a_command_is_documented_and_no_other(command: str) -> None:
    common = options("workerctl")
    [found] = [each.load() for each in installed("workerctl.commands") if each.name == command]
    subcommands = [(name,) for name in found if not name.startswith("-")] if isinstance(found, App) else [()]
    shown = {option for words in subcommands for option in options("workerctl", command, *words)} - common
    own = documented_options(section(CLIENT, f"### {command}"))
    if command == "spawn":  # its section says: those of run except --detach, and these
        own |= documented_options(section(CLIENT, "### run")) - {"--detach"}
    assert own == shown
    assert common == documented_options(section(CLIENT, "## Options").partition("\n### ")[0])


def test_every_handler_is_documented_with_its_rpc_and_right_and_no_other() -> None:
    rows = set(
        re.findall(r"^\| `(\S+)` \| `(\S+)` \| `(\S+)` \|$", section(PLUGINS, "## workerd.handlers"), re.MULTILINE)
    )
    found = installed("workerd.handlers")
    handlers = [route.handler for route in load_routes(found).values()]
    assert rows == {(name, each.rpc, each.right) for name, each in zip(names(found), handlers, strict=True)}


def test_what_each_right_is_exercised_on_is_documented() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| .*? \| ((?:`[\w-]+`(?:, )?)+) \|$", section(DAEMON, "### Policies"), re.MULTILINE)
    )
    rights = rights_of(load_routes(installed("workerd.handlers")).values())
    on = {kind: sorted(name for name, right in rights.items() if kind in right.on) for kind in On}
    assert {kind: re.findall(r"[\w-]+", cells) for kind, cells in rows.items()} == on


@pytest.mark.parametrize(
    "rpc", sorted(route.handler.rpc for route in load_routes(installed("workerd.handlers")).values())
)
def test_the_contract_says_what_an_rpc_does(rpc: str) -> None:
    assert re.search(rf"^  // {rpc} .*\n(?:  //.*\n)*  rpc {rpc}\(", (ROOT / "api.proto").read_text(), re.MULTILINE)


@pytest.mark.parametrize("group", ["workerd.handlers", "workerctl.commands"])
def test_every_extension_point_is_documented(group: str) -> None:
    assert section(PLUGINS, f"## {group}")


def run_example(daemon: Daemon, number: int, **given: str) -> bytes:
    """Run one of the README's four command lines as it stands, with the endpoint and what is in <> filled in."""
    line = EXAMPLE_COMMANDS[number].replace("https://localhost:7005", daemon.endpoint)
    for name, value in given.items():
        line = line.replace({"uuid": "<uuid>", "stream_type": "<raw|stdout|stderr>"}[name], value)
    program, *arguments = shlex.split(line)
    assert program == "workerctl"
    result = run_workerctl(*arguments, environment={**os.environ, "WORKERCTL_PKI_DIR": str(daemon.pki.path)})
    assert (result.returncode, result.stderr) == (0, b""), line
    return result.stdout


@pytest.fixture(scope="module")
def example(shared_daemon: Daemon) -> str:
    """The job that the README's first line starts, ended."""
    job_id = run_example(shared_daemon, 0).decode().strip()
    assert shared_daemon.workerctl("stream-log", "--past-events", "--uuid", job_id).returncode == 0
    return job_id


def test_the_readme_has_the_four_lines_for_the_user_that_tests_have() -> None:
    assert [shlex.split(line)[5] for line in EXAMPLE_COMMANDS] == ["spawn", "stop", "status", "stream-log"]
    assert all(f" --username {USER} " in line for line in EXAMPLE_COMMANDS)


def test_the_readmes_spawn_starts_what_it_says(shared_daemon: Daemon, example: str) -> None:
    spec = shared_daemon.folder(example).read_spec()
    assert (spec.program, spec.args) == ("/usr/bin/echo", ("hi", "man"))
    assert (spec.envs, spec.working_directory) == ({"TESTENV": "ENVVALUE"}, "/sys")


def test_the_readmes_stop_of_an_ended_job_changes_nothing(shared_daemon: Daemon, example: str) -> None:
    assert b"exited with code 0" in run_example(shared_daemon, 1, uuid=example)


def test_the_readmes_stop_ends_a_job_that_runs(shared_daemon: Daemon) -> None:
    job_id = shared_daemon.workerctl("spawn", "--", "sleep", "1000").stdout.decode().strip()
    assert run_example(shared_daemon, 1, uuid=job_id).startswith(f"id:         {job_id}\n".encode())
    assert shared_daemon.workerctl("stream-log", "--uuid", job_id).returncode == 0
    assert f"stopped by {USER} with signal 15".encode() in run_example(shared_daemon, 2, uuid=job_id)


def test_the_readmes_status_tells_how_the_job_is(shared_daemon: Daemon, example: str) -> None:
    lines = dict(re.findall(r"(\w+): +(.*)", run_example(shared_daemon, 2, uuid=example).decode()))
    assert (lines["id"], lines["owner"], lines["state"]) == (example, USER, "ended")
    assert (lines["program"], lines["arguments"], lines["directory"]) == ("/usr/bin/echo", "hi man", "/sys")
    assert lines["ended"].endswith("exited with code 0")


@pytest.mark.parametrize(("stream", "printed"), [("stdout", b"hi man\n"), ("stderr", b"")])
def test_the_readmes_stream_log_shows_a_stream(
    shared_daemon: Daemon, example: str, stream: str, printed: bytes
) -> None:
    assert run_example(shared_daemon, 3, uuid=example, stream_type=stream) == printed


def test_the_readmes_stream_log_shows_all_events(shared_daemon: Daemon, example: str) -> None:
    output, end = map(json.loads, run_example(shared_daemon, 3, uuid=example, stream_type="raw").splitlines())
    assert (output["event"], output["stream"], output["offset_bytes"], output["text"]) == (
        "output",
        "stdout",
        0,
        "hi man\n",
    )
    assert (end["event"], end["exited"]) == ("end", {"code": 0})


def install_example(folder: Path, group: str) -> None:
    """Lay the README's code and entry point out as an installed package; only what is around them is made up."""
    [table] = [block for block in code(README, "toml") if group in block]
    [(name, target)] = tomllib.loads(table)["project"]["entry-points"][group].items()
    module, _, function = target.partition(":")
    [source] = [block for block in code(README, "python") if f"async def {function}(" in block]
    (folder / f"{module}.py").write_text(source)
    info = folder / "example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")


@pytest.mark.parametrize("group", ["workerd.handlers", "workerctl.commands"])
def test_the_readmes_packages_can_be_built(group: str) -> None:
    """A name, a version, and in the wheel the module that the entry point names and the compiler's output."""
    [table] = [tomllib.loads(block) for block in code(README, "toml") if group in block]
    assert {"name", "version", "dependencies"} <= table["project"].keys()
    [target] = table["project"]["entry-points"][group].values()
    if group == "workerd.handlers":
        assert table["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == [
            f"{target.partition(':')[0]}.py",
            "count_api",
        ]


def compile_example(folder: Path) -> None:
    """Make Python of the README's contract, as the page says."""
    [contract] = code(README, "proto")
    [path] = re.findall(r"^`(proto/.*\.proto)`:$", README, re.MULTILINE)
    proto = folder / path
    proto.parent.mkdir(parents=True)
    proto.write_text(contract)
    [block] = [block for block in code(README, "sh") if "grpc_tools.protoc" in block]
    install, commands = block.split("\n", 1)
    assert install.startswith("pip install 'betterproto2-compiler")  # it is there
    programs = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    subprocess.run(
        ["sh", "-ec", commands],
        capture_output=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PATH": programs},
        timeout=60,
    )


def with_packages(folder: Path) -> str:
    """A PYTHONPATH on which packages in a folder are found, too."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def test_the_readmes_command_works_once_it_is_installed(shared_daemon: Daemon, example: str, tmp_path: Path) -> None:
    install_example(tmp_path, "workerctl.commands")
    label = "newest"
    newest = shared_daemon.workerctl("spawn", "--name", label, "--", "true").stdout
    result = subprocess.run(
        shared_daemon.command("last", "--name", label),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": with_packages(tmp_path)},
        timeout=60,
    )
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", newest)
    assert newest.decode().strip() != example


async def test_the_readmes_handler_works_once_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_example(tmp_path)
    install_example(tmp_path, "workerd.handlers")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", with_packages(tmp_path))
    api = importlib.import_module("count_api.count.v1")
    script = "echo one; echo two >&2; printf three"
    with running_daemon(tmp_path / "state") as daemon:
        async with daemon.client() as client:
            job_id = await client.spawn(SpawnRequest(program="sh", args=["-c", script]))
            async for _ in client.stream_log(job_id):
                pass
            request = api.CountRequest(job_id=job_id)
            answer = await client.call(lambda channel: api.CountServiceStub(channel).count(request))
        add_command(tmp_path)
        command = daemon.command("count", job_id)
        result = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False, timeout=60)
    assert answer.lines == script.count("echo")
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", f"{answer.lines}\n".encode())


def add_command(folder: Path) -> None:
    """Lay the command of the plugins' page beside the handler that it calls, as the page says."""
    [table] = [tomllib.loads(block) for block in code(PLUGINS, "toml")]
    [(name, target)] = table["project"]["entry-points"]["workerctl.commands"].items()
    file = f"{target.partition(':')[0]}.py"
    assert f"`{file}`" in PLUGINS and file in table["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    [source] = [block for block in code(PLUGINS, "python") if "CountServiceStub" in block]
    (folder / file).write_text(source)
    with open(folder / "example-1.0.dist-info" / "entry_points.txt", "a") as entry_points:
        entry_points.write(f"[workerctl.commands]\n{name} = {target}\n")


def test_a_line_of_the_audit_trail_can_be_checked_by_hand_as_the_page_says(tmp_path: Path) -> None:
    [command] = [block for block in code(DAEMON, "sh") if "sha256sum" in block]
    line, head = make_line(
        {"event": "decision", "args": ["ü", '"}', 'x","hash":"00"}']}, GENESIS, "2026-11-24T00:00:00Z"
    )
    (tmp_path / "LINE").write_bytes(line)
    result = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True, text=True, timeout=60)
    assert result.stdout.split() == [head.hash, "-"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as they are linked to."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_table_tells_of_one_thing_twice(page: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        things = first_column(table)
        assert sorted(things) == sorted(set(things))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_mentions_a_path_of_a_particular_machine(page: Path) -> None:
    assert OF_A_PARTICULAR_MACHINE.findall(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_are_there(page: Path) -> None:
    """As `tests/FILE` or `tests/FILE::test`."""
    for path, _, name in re.findall(r"`(tests/[\w/.-]+)(::(\w+))?`", page.read_text()):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
        defined = not name or re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
        assert defined, f"{page.name} names {path}::{name}"


def test_every_claim_of_the_security_page_names_a_test() -> None:
    """Each of its sections, except those that say who is who and what is not protected."""
    page = (ROOT / "docs" / "security.md").read_text()
    headings = re.findall(r"^## .*$", page, re.MULTILINE)
    for heading in headings:
        named = "`tests/" in section(page, re.escape(heading))
        assert named is (heading not in ("## Who is who", "## What is not protected")), heading
