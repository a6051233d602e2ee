"""Which part of a command line is workerctl's, and which is the job's."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cyclopts import App
from worker_api.worker.v1 import SpawnRequest

from workerctl.app import main_with
from workerctl.client import Client
from workerctl.command_line import split_command_line
from workerctl.parameters import CommandLine

OPTIONS_OF_OURS = ("--help", "--name", "x", "--endpoint=y", "--", "-l", "[1,2]", "--version")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SpawnRequest]:
    """The requests that spawn would send."""
    sent: list[SpawnRequest] = []

    async def spawn(client: Client, request: SpawnRequest) -> str:
        del client
        sent.append(request)
        return "a-job"

    monkeypatch.setattr(Client, "spawn", spawn)
    monkeypatch.setenv("WORKERCTL_ENDPOINT", "https://localhost:1")
    monkeypatch.setenv("WORKERCTL_PKI_DIR", str(tmp_path))
    return sent


@pytest.mark.parametrize("before", [(), ("--",), ("--envs", "A=b", "--output", "json", "--")], ids=" ".join)
@pytest.mark.parametrize("main_options", [(), ("--username", "spawn")], ids=" ".join)
def test_nothing_after_the_program_s_name_is_an_option_of_workerctl(
    requests: list[SpawnRequest], before: Sequence[str], main_options: Sequence[str]
) -> None:
    assert main_with([*main_options, "spawn", *before, "ls", *OPTIONS_OF_OURS]) == 0
    [request] = requests
    assert (request.program, request.args) == ("ls", list(OPTIONS_OF_OURS))


def test_options_before_the_program_s_name_are_workerctl_s(requests: list[SpawnRequest]) -> None:
    options = ("--name", "label", "--timeout-seconds=3", "--envs", "A=b")
    assert main_with(["spawn", *options, "ls", "-l", "--name", "other"]) == 0
    [request] = requests
    assert (request.name, request.envs, request.args) == ("label", {"A": "b"}, ["-l", "--name", "other"])


def test_a_command_without_a_program_takes_options_on_both_sides(capfd: pytest.CaptureFixture[str]) -> None:
    assert main_with(["pki", "show", "a/b", "--output", "json"]) == 2
    assert main_with(["pki", "show", "--", "--help"]) == 2
    err = capfd.readouterr().err
    assert "'a/b' cannot be the name" in err
    assert "'--help' cannot be the name" in err


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("--args a --args b,c --args=d", ["a", "b", "c", "d"]),
        ("--args a --args '' --args b", ["a", "", "b"]),
        ("--args '' --name x --args=", ["", ""]),
        ("--args -l --args=--name --args a=b", ["-l", "--name", "a=b"]),
    ],
)
def test_repetitions_of_an_option_are_one_list_in_their_order(
    requests: list[SpawnRequest], words: str, args: list[str]
) -> None:
    assert main_with(["spawn", "--program-path", "ls", *shlex.split(words), "--envs", "A=b", "--envs=C=d=e"]) == 0
    [request] = requests
    assert (request.args, request.envs) == (args, {"A": "b", "C": "d=e"})


@pytest.mark.parametrize("words", [["--args"], ["--args", "--", "ls"], ["--name"]])
def test_an_option_without_its_value_is_a_mistake(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main_with(["spawn", *words]) == 2
    assert f"{words[0]} requires an argument" in capfd.readouterr().err


def test_what_looks_like_a_number_is_not_lost(requests: list[SpawnRequest]) -> None:
    assert main_with(["spawn", "-5", "ls"]) == 0
    [request] = requests
    assert (request.program, request.args) == ("-5", ["ls"])


def test_only_a_command_with_a_command_line_has_one() -> None:
    """A plugin's parameters of other types are parsed as ever, on both sides of `--`."""
    app = App(name="workerctl")

    @app.meta.default
    def main(*tokens: str) -> None: ...

    @app.command
    def add(*numbers: int) -> None: ...

    @app.command
    def start(*command: CommandLine, name: str = "") -> None: ...

    for words in (["add", "1", "--", "2"], ["nosuch", "1"], ["add"], []):
        assert split_command_line(app, words) == (words, ())
    assert split_command_line(app, ["start", "--name", "add", "ls", "--", "x"]) == (
        ["start", "--name", "add"],
        ["ls", "--", "x"],
    )


def cpu_seconds(*words: str) -> float:
    """Return the processor time of a run that reaches no daemon."""
    command = [sys.executable, "-m", "workerctl", "--pki-dir", "/nonexistent", "--endpoint", "https://localhost:1"]
    process = subprocess.Popen([*command, "run", *words], stderr=subprocess.DEVNULL)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        process.returncode = 0
    assert os.waitstatus_to_exitcode(status) == 125
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("before", [(), ("--",)], ids=["bare", "after --"])
def test_time_does_not_grow_with_the_number_of_arguments(before: tuple[str, ...]) -> None:
    """Allowed is what copying them takes; parsing them took thirty times as long as all else."""
    assert cpu_seconds(*before, "true", *map(str, range(60_000))) < 4 * cpu_seconds(*before, "true")


def test_time_does_not_grow_with_the_number_of_repetitions_of_an_option() -> None:
    words = [word for number in range(1000) for word in ("--args", str(number))]
    assert cpu_seconds("--program-path", "true", *words) < 4 * cpu_seconds("--program-path", "true")
